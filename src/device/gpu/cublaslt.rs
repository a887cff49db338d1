//! Matrix products by cuBLASLt. It would choose another kernel for another number of rows; for products that are pinned the
//! choice is made once, at one number of rows, so that a row has the same bits in every batch.

use std::collections::HashMap;
use std::ffi::c_void;

use anyhow::{Context, Result, anyhow};
use cudarc::cublaslt::{result, sys};

use super::cuda::probe;
use super::driver::{DevicePtr, Product};
use crate::device::DType;

/// Everything that the library is asked for: cudarc panics where one is missing.
const SYMBOLS: [&str; 12] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Memory that a kernel may use beside its operands: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The rows for which kernels of pinned products are chosen: four images of 32x32 tokens.
const ROWS: u32 = 4096;

/// All of `cublasLtReductionScheme_t`.
const ANY_PARTS: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK as u32;

/// Operands begin at multiples of so many bytes.
const ALIGNMENT: u32 = 16;

/// The library, ready for work.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    /// Of each stream.
    workspaces: [DevicePtr; 2],
    /// By all of a product but its places, and its rows if it is pinned.
    chosen: HashMap<Product, sys::cublasLtMatmulAlgo_t>,
}

impl Library {
    /// The library, with memory from `alloc`, which it does not give back.
    pub(super) fn open(alloc: impl Fn(usize) -> Result<DevicePtr>) -> Result<Self> {
        probe::has("cublasLt", &SYMBOLS).map_err(|why| anyhow!("cublasLt is not usable: {why}"))?;
        let workspaces = [alloc(WORKSPACE)?, alloc(WORKSPACE)?];
        Ok(Self { handle: result::create_handle()?, workspaces, chosen: HashMap::new() })
    }

    /// The product, after all that `stream` has been asked for; what is asked for with one number of `side` comes in order.
    pub(super) fn run(&mut self, product: &Product, side: usize, stream: *mut c_void) -> Result<()> {
        let Product { dtype, out, m, n, k, along, is_pinned, .. } = *product;
        let shape = || format!("cublasLt: {m}x{n}x{k} of {dtype:?} in {out:?}, along: {along}, pinned: {is_pinned}");
        let algorithm = self.choice(product).with_context(shape)?;
        let of = Described::new(product).with_context(shape)?;
        let (one, beta) = (1f32, if product.adds { 1f32 } else { 0f32 });
        let [w, x, y] = of.layouts;
        let at = |ptr: DevicePtr| ptr as *mut c_void;
        // SAFETY: the operands are of the shapes that the layouts say, and live until the stream has come by: buffers are
        // used again only by what comes after. A workspace is used by one stream's work alone.
        let done = unsafe {
            result::matmul(
                self.handle,
                of.product,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                at(product.w),
                w,
                at(product.x),
                x,
                at(product.y),
                y,
                at(product.y),
                y,
                &algorithm,
                at(self.workspaces[side]),
                WORKSPACE,
                stream.cast(),
            )
        };
        done.with_context(shape)
    }

    fn choice(&mut self, product: &Product) -> Result<sys::cublasLtMatmulAlgo_t> {
        let m = if product.is_pinned { ROWS } else { product.m };
        let like = Product { m, y: 0, x: 0, w: 0, ..*product };
        if let Some(algorithm) = self.chosen.get(&like) {
            return Ok(*algorithm);
        }
        let algorithm = self.choose(&like).with_context(|| format!("no kernel for {m} rows"))?;
        self.chosen.insert(like, algorithm);
        Ok(algorithm)
    }

    fn choose(&self, product: &Product) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        const ALIGNED: [Attribute; 4] = [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        let of = Described::new(product)?;
        let [w, x, y] = of.layouts;
        // Pinned, no sums over parts of the depth, of which there may be more for fewer rows.
        let (workspace, parts) = (WORKSPACE as u64, if product.is_pinned { 0 } else { ANY_PARTS });
        // SAFETY: the descriptions live; the attributes have the types and sizes that the library asks for.
        unsafe {
            let preference = result::create_matmul_pref()?;
            let set = |attribute, value: &[u8]| {
                result::set_matmul_pref_attribute(preference, attribute, value.as_ptr().cast(), value.len())
            };
            let found = set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace.to_ne_bytes())
                .and_then(|()| set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &parts.to_ne_bytes()))
                .and_then(|()| ALIGNED.into_iter().try_for_each(|a| set(a, &ALIGNMENT.to_ne_bytes())))
                .and_then(|()| result::get_matmul_algo_heuristic(self.handle, of.product, w, x, y, y, preference));
            result::destroy_matmul_pref(preference)?;
            Ok(found?.algo)
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: it is this one's own and is not used again.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product as the library sees it, column by column: `yᵀ = w'·xᵀ`.
struct Described {
    product: sys::cublasLtMatmulDesc_t,
    /// Of `w` `[k, n]` if it lies along, else `[n, k]`; `x` `[k, m]`; `y` `[n, m]`.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl Described {
    fn new(product: &Product) -> Result<Self> {
        let Product { dtype, out, m, n, k, ldy, ldx, ldw, along, .. } = *product;
        let layout = |dtype, rows: u32, columns: u32, ld: u32| {
            result::create_matrix_layout(kind(dtype), rows.into(), columns.into(), ld.into())
        };
        let (rows, columns) = if along { (k, n) } else { (n, k) };
        let described = Self {
            product: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType::CUDA_R_32F,
            )?,
            layouts: [layout(dtype, rows, columns, ldw)?, layout(dtype, k, m, ldx)?, layout(out, n, m, ldy)?],
        };
        // As cublasOperation_t has it.
        let transposed = i32::from(along);
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the attribute has the type and size that the library asks for.
        unsafe { result::set_matmul_desc_attribute(described.product, attribute, (&raw const transposed).cast(), 4)? };
        Ok(described)
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each is this one's own and is not used again.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

fn kind(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        _ => sys::cudaDataType::CUDA_R_16BF,
    }
}
