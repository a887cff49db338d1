//! Who multiplies matrices of halves: our kernels, or a library.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};

use super::Gpu;
use super::driver::{Op, Product};

/// Names one of [`Products`].
const PRODUCTS: &str = "ENGINE_PRODUCTS";

/// What multiplies in the op `linear`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Our kernels.
    #[default]
    Own,
    /// cuBLASLt, which is interpreted where the GPU is.
    Cublaslt,
}

impl Products {
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
        let is_library = products == Products::Cublaslt;
        if is_library {
            self.driver.prepare_products().with_context(|| format!("{PRODUCTS}=cublaslt"))?;
        }
        self.has_library.store(is_library, Ordering::Relaxed);
        Ok(())
    }

    /// What multiplies now.
    pub fn products(&self) -> Products {
        if self.has_library.load(Ordering::Relaxed) { Products::Cublaslt } else { Products::Own }
    }

    /// A product by the library; one without results has nothing to do.
    pub(crate) fn multiply(&self, product: Product) {
        if product.m > 0 && product.n > 0 {
            self.note("linear", "linear_library", None);
            self.attempt(|lane| lane.submit(&*self.driver, Op::Product(product)));
        }
    }
}
