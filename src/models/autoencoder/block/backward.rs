//! From the gradient to what a block gives to that to its input. What lies inside a block is computed again; weights are frozen
//! and get none.

use super::{Attention, Block, Conv, Norm, Resnet};
use crate::device::Tensor;
use crate::ops::attention::{self, Mask, OutputGrad, Part};
use crate::ops::{conv2d, group_norm};

impl Block<'_> {
    /// The gradient to the input `x` of [`Block::forward`], if `d` is that to the result.
    pub fn backward(&self, x: &Tensor, d: Tensor) -> Tensor {
        match self {
            Self::Resnet(resnet) => resnet.backward(x, d),
            Self::Attention(attention) => attention.backward(x, d),
            Self::Halve(_) => unreachable!("images that are encoded get no gradient"),
            Self::Double(conv) => conv.doubled_backward(&d),
        }
    }
}

impl Conv {
    /// The gradient to the input of a convolution that keeps the size, if `d` is that to the result; plus `add`.
    pub fn backward(&self, d: &Tensor, add: Option<&Tensor>) -> Tensor {
        conv2d::backward(d, self.turned.get_or_init(|| self.ordered(d, conv2d::turned)), add)
    }

    fn doubled_backward(&self, d: &Tensor) -> Tensor {
        conv2d::doubled_backward(d, self.turned.get_or_init(|| self.ordered(d, conv2d::turned_folded)))
    }
}

impl Norm {
    /// Adds the gradient to `x` to `dx`, if `d` is that to the result.
    pub fn backward(&self, dx: &mut Tensor, d: &Tensor, x: &Tensor, silu: bool) {
        group_norm::backward(dx, d, x, self.parameters(), silu);
    }
}

impl Resnet {
    fn backward(&self, x: &Tensor, d: Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x, true), None);
        let mut dh = h.zeros_like(h.shape());
        self.norm2.backward(&mut dh, &self.conv2.backward(&d, None), &h, true);
        drop(h);
        let dh = self.conv1.backward(&dh, None);
        let mut dx = match &self.shortcut {
            Some(shortcut) => shortcut.backward(&d, None),
            None => d,
        };
        self.norm1.backward(&mut dx, &dh, x, true);
        dx
    }
}

impl Attention {
    fn backward(&self, x: &Tensor, mut d: Tensor) -> Tensor {
        let [q, k, v] = self.operands(&self.norm.forward(x, false));
        let (parts, heads) = ([Part { q: &q, k: &k, v: &v }], self.heads(x));
        let attention = attention::forward(&parts, heads, Mask::default());
        let dout = self.out.backward(&d, None).reshape(q.shape());
        let outputs = [Some(OutputGrad { out: &attention.out[0], dout: &dout })];
        let grads = attention::backward(&outputs, &attention.lse, &parts, heads).remove(0);
        let dq = grads.q.expect("the part's result was read");
        let each = [(&self.q, dq), (&self.k, grads.k), (&self.v, grads.v)];
        let to_input =
            |sum: Option<Tensor>, (conv, d): (&Conv, Tensor)| Some(conv.backward(&d.reshape(x.shape()), sum.as_ref()));
        let dnormed = each.into_iter().fold(None, to_input).expect("three");
        self.norm.backward(&mut d, &dnormed, x, false);
        d
    }
}
