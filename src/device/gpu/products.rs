//! Who multiplies matrices of halves: our kernels, or a library.

use anyhow::{Context, Result, bail};

use super::driver::{Op, Product};
use super::{Gpu, lock};

/// Names one of [`Products`].
const PRODUCTS: &str = "ENGINE_PRODUCTS";

/// What multiplies in the op `linear`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Our kernels.
    #[default]
    Own,
    /// cuBLASLt, which is interpreted where the GPU is, by the same kernel for any number of rows.
    Cublaslt,
    /// The same by the kernel that it prefers for each number of rows, so that a row's bits depend on the batch: for comparison.
    CublasltUnpinned,
}

impl Products {
    /// Those that a run can have.
    const ALL: [(&str, Self); 2] = [("own", Self::Own), ("cublaslt", Self::Cublaslt)];

    /// That of a name.
    ///
    /// # Errors
    /// If there is none, with those that there are.
    pub fn named(name: &str) -> Result<Self> {
        match Self::ALL.iter().find(|(known, _)| *known == name) {
            Some((_, products)) => Ok(*products),
            None => bail!("'{name}', expected {}", Self::ALL.map(|(known, _)| known).join(" or ")),
        }
    }

    /// What the environment asks for.
    pub(super) fn asked() -> Result<Self> {
        let asked = std::env::var_os(PRODUCTS).map(|name| Self::named(&name.to_string_lossy()));
        asked.unwrap_or(Ok(Self::default())).context(PRODUCTS)
    }
}

impl Gpu {
    /// Has products done by `products` from now on.
    ///
    /// # Errors
    /// If the library is not usable.
    pub fn choose(&self, products: Products) -> Result<()> {
        if products != Products::Own {
            self.driver.prepare_products().with_context(|| format!("{PRODUCTS}=cublaslt"))?;
        }
        *lock(&self.products) = products;
        Ok(())
    }

    /// What multiplies now.
    pub fn products(&self) -> Products {
        *lock(&self.products)
    }

    /// A product by the library; one without results has nothing to do.
    pub(crate) fn multiply(&self, product: Product) {
        if product.m > 0 && product.n > 0 {
            let product = Product { is_pinned: self.products() == Products::Cublaslt, ..product };
            self.note("linear", "linear_library", None);
            self.attempt(|lane| lane.submit(&*self.driver, Op::Product(product)));
        }
    }
}
