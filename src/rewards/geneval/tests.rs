use super::*;
use crate::device::Device;

/// Sees as many dogs as the first byte of the picture says.
struct Dogs;

impl Detector for Dogs {
    fn classes(&self) -> &[&str] {
        &["dog", "cat"]
    }

    fn detect(&self, images: &[RgbImage], looks: &[Look]) -> Result<Vec<Vec<Detection>>> {
        assert_eq!(images.len(), looks.len());
        let dog = Detection { class: "dog".into(), score: 1.0, bounds: [0.0; 4], color: None };
        Ok(images.iter().map(|image| vec![dog.clone(); image.data[0].into()]).collect())
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

#[test]
fn only_colours_that_a_rule_looks_at_are_asked_for() {
    let set = set(
        "{\"prompt\": \"a red dog and a cat\", \"include\": [{\"class\": \"dog\", \"count\": 1, \"color\": \"red\"}, \
                   {\"class\": \"cat\", \"count\": 1}]}",
    );
    let look = Look::of(&set.prompts[0]);
    assert!(look.wants_color("dog", 0.31) && !look.wants_color("dog", 0.3) && !look.wants_color("cat", 1.0));
    assert!(Look::at_all().wants_color("cat", 0.31));
}

#[test]
fn every_class_of_a_picture_is_shown_with_the_surest_first() {
    let picture = RgbImage { width: 1, height: 1, data: vec![2; 3] };
    let images = Images::from_pictures(vec![picture], &Device::Cpu);
    let set = set("{\"prompt\": \"two dogs\", \"include\": [{\"class\": \"dog\", \"count\": 2}]}");
    let prompts = [&set.prompts[0]];
    let reward = GenEval::new(Box::new(Dogs));
    let shown = reward.explain(&images, &prompts).unwrap().unwrap();
    let dog = json!({"class": "dog", "score": 1.0, "box": [0.0, 0.0, 0.0, 0.0], "color": null});
    let score = reward.score(&images, &prompts).unwrap().remove(0);
    assert_eq!(score.value, 1.0);
    assert_eq!(shown, [(score, json!([dog, dog]))]);
}
