use super::*;
use crate::device::Device;

/// Sees as many dogs as the first byte of the picture says.
struct Dogs;

impl Detector for Dogs {
    fn classes(&self) -> &[&str] {
        &["dog", "cat"]
    }

    fn detect(&self, image: &RgbImage) -> Vec<Detection> {
        vec![Detection { class: "dog".into(), score: 1.0, bounds: [0.0; 4], color: None }; image.data[0].into()]
    }
}

fn set(lines: &str) -> PromptSet {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.jsonl");
    std::fs::write(&path, lines).unwrap();
    PromptSet::load(&path).unwrap()
}

#[test]
fn the_dense_score_is_the_value_and_the_accuracies_stand_beside_it_under_the_tag_too() {
    let set =
        set("{\"tag\": \"counting\", \"include\": [{\"class\": \"dog\", \"count\": 2}], \"prompt\": \"two dogs\"}\n\
                   {\"include\": [{\"class\": \"dog\", \"count\": 1}], \"prompt\": \"a dog\"}");
    let pictures = [2, 3, 2].map(|dogs| RgbImage { width: 1, height: 1, data: vec![dogs; 3] });
    let images = Images::from_pictures(pictures.to_vec(), &Device::Cpu);
    let prompts = [&set.prompts[0], &set.prompts[0], &set.prompts[1]];
    let scores = GenEval::new(Box::new(Dogs)).score(&images, &prompts).unwrap();
    let extra = |s: &Score| s.extra.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    assert_eq!(scores.iter().map(|s| s.value).collect::<Vec<_>>(), [1.0, 0.5, 0.0]);
    assert_eq!(extra(&scores[0]), "accuracy=1 counting_accuracy=1 counting_strict_accuracy=1 strict_accuracy=1");
    assert_eq!(extra(&scores[1]), "accuracy=1 counting_accuracy=1 counting_strict_accuracy=0 strict_accuracy=0");
    assert_eq!(extra(&scores[2]), "accuracy=1 strict_accuracy=0");
}

#[test]
fn a_prompt_that_cannot_be_judged_is_found_before_anything_runs() {
    let error = |lines: &str| GenEval::new(Box::new(Dogs)).check(&set(lines)).unwrap_err().to_string();
    let good = "{\"include\": [{\"class\": \"dog\", \"count\": 1}], \"prompt\": \"a dog\"}\n";
    let unknown = error(&format!("{good}{}", good.replace("\"dog\"", "\"dig\"")));
    assert!(unknown.ends_with("p.jsonl:2: class 'dig' is not one of the detector's (dog, cat); did you mean 'dog'?"));
    assert!(error("{\"prompt\": \"a dog\"}").contains("p.jsonl:1: geneval needs key 'include'"));
}
