use super::{LoraGrad, LoraRef};
use crate::device::{Tensor, Weight};
use crate::ops::matmul::{Epilogue, Mat, matmul};

fn with_width(x: &Tensor, width: usize) -> Tensor {
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("at least one axis") = width;
    Tensor::scratch(&shape)
}

pub(super) fn forward(x: &Tensor, w: &Weight, bias: Option<&Weight>, lora: Option<LoraRef>) -> Tensor {
    assert_eq!(x.width(), w.dim(1), "linear: x {:?}, weight {:?}", x.shape(), w.shape());
    let out = w.dim(0);
    let mut y = with_width(x, out);
    let bias = bias.map(Weight::to_f32);
    matmul(
        y.data_mut(),
        out,
        Mat::of(x),
        Mat::weight(w).t(),
        Epilogue { bias: bias.as_deref(), ..Epilogue::default() },
    );
    if let Some(l) = lora {
        let down = product(Mat::of(x), Mat::of(l.a).t());
        let add = Epilogue { scale: l.scale, accumulate: true, bias: None };
        matmul(y.data_mut(), out, Mat::of(&down), Mat::of(l.b).t(), add);
    }
    y
}

fn product(a: Mat, b: Mat) -> Tensor {
    let mut out = Tensor::scratch(&[a.rows(), b.cols()]);
    matmul(out.data_mut(), b.cols(), a, b, Epilogue::default());
    out
}

pub(super) fn backward(
    dy: &Tensor,
    w: &Weight,
    x: Option<&Tensor>,
    lora: Option<LoraRef>,
    grad: Option<LoraGrad>,
    want_dx: bool,
) -> Option<Tensor> {
    assert_eq!(dy.width(), w.dim(0), "linear backward: dy {:?}, weight {:?}", dy.shape(), w.shape());
    let mut dx = want_dx.then(|| {
        let mut dx = with_width(dy, w.dim(1));
        matmul(dx.data_mut(), w.dim(1), Mat::of(dy), Mat::weight(w), Epilogue::default());
        dx
    });
    let Some(l) = lora else { return dx };
    let up = product(Mat::of(dy), Mat::of(l.b));
    let add = Epilogue { scale: l.scale, accumulate: true, bias: None };
    if let Some(grad) = grad {
        let x = x.expect("the input is saved wherever a LoRA is trained");
        let down = product(Mat::of(x), Mat::of(l.a).t());
        let (rank, width) = (l.a.dim(0), l.a.dim(1));
        matmul(grad.b.data_mut(), rank, Mat::of(dy).t(), Mat::of(&down), add);
        matmul(grad.a.data_mut(), width, Mat::of(&up).t(), Mat::of(x), add);
    }
    if let Some(dx) = &mut dx {
        matmul(dx.data_mut(), w.dim(1), Mat::of(&up), Mat::of(l.a), add);
    }
    dx
}
