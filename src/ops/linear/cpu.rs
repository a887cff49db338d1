use super::{InputGrad, LoraGrad, LoraRef};
use crate::device::{Tensor, Weight};
use crate::ops::cpu::gemm::{Epilogue, Mat, matmul};

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
    dx: InputGrad,
) {
    let width = w.dim(1);
    assert_eq!(dy.width(), w.dim(0), "linear backward: dy {:?}, weight {:?}", dy.shape(), w.shape());
    let dx = match dx {
        InputGrad::Skip => None,
        InputGrad::Overwrite(dx) => Some((dx, false)),
        InputGrad::Add(dx) => Some((dx, true)),
    };
    let mut dx = dx.map(|(dx, accumulate)| {
        assert_eq!((dx.rows(), dx.width()), (dy.rows(), width), "linear backward: dx {:?}", dx.shape());
        matmul(dx.data_mut(), width, Mat::of(dy), Mat::weight(w), Epilogue { accumulate, ..Epilogue::default() });
        dx
    });
    let Some(l) = lora else { return };
    let up = product(Mat::of(dy), Mat::of(l.b));
    let add = Epilogue { scale: l.scale, accumulate: true, bias: None };
    if let Some(grad) = grad {
        let x = x.expect("the input is saved wherever a LoRA is trained");
        let down = product(Mat::of(x), Mat::of(l.a).t());
        matmul(grad.b.data_mut(), down.width(), Mat::of(dy).t(), Mat::of(&down), add);
        matmul(grad.a.data_mut(), width, Mat::of(&up).t(), Mat::of(x), add);
    }
    if let Some(dx) = &mut dx {
        matmul(dx.data_mut(), width, Mat::of(&up), Mat::of(l.a), add);
    }
}
