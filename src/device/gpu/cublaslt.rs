//! A matrix product by cuBLASLt, which ours are compared with in benchmarks. Its choice of kernel is made once for a shape and
//! kept, so that results and times repeat.

use std::ffi::c_void;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use cudarc::cublaslt::{result, sys};

use super::Gpu;
use super::cuda::probe;
use crate::device::{DType, Device, Tensor};

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

/// `y = x·wᵀ` for one shape and type: `[m, k]` and `[n, k]` give `[m, n]`.
pub struct Linear {
    gpu: Arc<Gpu>,
    shape: [usize; 3],
    dtype: DType,
    handle: sys::cublasLtHandle_t,
    product: sys::cublasLtMatmulDesc_t,
    /// Of w, x and y as the library sees them, column by column: `[k, n]`, `[k, m]`, `[n, m]`.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: Tensor,
}

impl Linear {
    /// For a shape `[m, n, k]`; takes the kernel that the library thinks fastest.
    ///
    /// # Errors
    /// If the library is missing, or has no kernel for it.
    pub fn new(gpu: &Arc<Gpu>, dtype: DType, shape: [usize; 3]) -> Result<Self> {
        probe::has("cublasLt", &SYMBOLS).map_err(|why| anyhow!("cublasLt is not usable: {why}"))?;
        gpu.stream().context("cublasLt needs an NVIDIA GPU")?;
        let kind = match dtype {
            DType::F32 => sys::cudaDataType::CUDA_R_32F,
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            _ => sys::cudaDataType::CUDA_R_16BF,
        };
        let [m, n, k] = shape.map(|s| s as u64);
        let layout = |rows, columns| result::create_matrix_layout(kind, rows, columns, rows as i64);
        let product =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)?;
        let workspace = Tensor::scratch_of(&Device::Gpu(gpu.clone()), DType::U8, &[WORKSPACE]);
        let mut linear = Self {
            gpu: gpu.clone(),
            shape,
            dtype,
            handle: result::create_handle()?,
            product,
            layouts: [layout(k, n)?, layout(k, m)?, layout(n, m)?],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace,
        };
        linear.algorithm =
            linear.choose().with_context(|| format!("cublasLt has no kernel for {shape:?} {dtype:?}"))?;
        Ok(linear)
    }

    fn choose(&self) -> Result<sys::cublasLtMatmulAlgo_t> {
        // As cublasOperation_t has it: the first operand is transposed.
        let (transposed, workspace) = (1i32, WORKSPACE as u64);
        let [w, x, y] = self.layouts;
        // SAFETY: the descriptions are this one's own; the attributes have the type and size that the library asks for.
        unsafe {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            result::set_matmul_desc_attribute(self.product, attribute, (&raw const transposed).cast(), 4)?;
            let preference = result::create_matmul_pref()?;
            let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let found = result::set_matmul_pref_attribute(preference, attribute, (&raw const workspace).cast(), 8)
                .and_then(|()| result::get_matmul_algo_heuristic(self.handle, self.product, w, x, y, y, preference));
            result::destroy_matmul_pref(preference)?;
            Ok(found?.algo)
        }
    }

    /// The product, after all that the device was asked for outside of regions.
    ///
    /// # Errors
    /// If the operands do not fit, or the library fails.
    pub fn run(&self, y: &mut Tensor, x: &Tensor, w: &Tensor) -> Result<()> {
        let ([m, n, k], dtype) = (self.shape, self.dtype);
        let fits = |t: &Tensor, shape: [usize; 2]| t.shape() == shape && t.dtype() == dtype;
        ensure!(fits(y, [m, n]) && fits(x, [m, k]) && fits(w, [n, k]), "{y:?} = {x:?} · {w:?}: made for {m}x{n}x{k}");
        let stream = self.gpu.stream().context("a stream")? as sys::cudaStream_t;
        let [layout_w, layout_x, layout_y] = self.layouts;
        let (one, zero) = (1f32, 0f32);
        let at = |t: &Tensor| t.address() as *mut c_void;
        // SAFETY: the operands are of the shapes that the layouts say, and live until the stream has come by: buffers are
        // used again only by what comes after.
        unsafe {
            result::matmul(
                self.handle,
                self.product,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                at(w),
                layout_w,
                at(x),
                layout_x,
                at(y),
                layout_y,
                at(y),
                layout_y,
                &self.algorithm,
                at(&self.workspace),
                WORKSPACE,
                stream,
            )?;
        }
        Ok(())
    }
}

impl Drop for Linear {
    fn drop(&mut self) {
        // SAFETY: each is this one's own and is not used again.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
            let _ = result::destroy_handle(self.handle);
        }
    }
}
