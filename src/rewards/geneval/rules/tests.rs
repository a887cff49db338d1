use super::*;
use crate::data::{Clause, Color, Exclusion};

fn clause(class: &str, count: usize) -> Clause {
    Clause { class: class.into(), count, color: None, position: None }
}

fn colored(class: &str, count: usize, color: Color) -> Clause {
    Clause { color: Some(color), ..clause(class, count) }
}

fn prompt(tag: &str, include: Vec<Clause>) -> Prompt {
    Prompt { text: String::new(), tag: Some(tag.into()), include, exclude: vec![], line: 1 }
}

fn at(class: &str, score: f64, x: f64, y: f64, color: Option<Color>) -> Detection {
    Detection { class: class.into(), score, bounds: [x, y, x + 10.0, y + 10.0], color }
}

fn some(class: &str, n: usize) -> Vec<Detection> {
    (0..n).map(|i| at(class, 0.95, 20.0 * i as f64, 0.0, None)).collect()
}

fn verdict(dense: f64, strict: bool, correct: bool) -> Verdict {
    Verdict { dense, strict, correct }
}

#[test]
fn t21_single_object() {
    let p = prompt("single_object", vec![clause("dog", 1)]);
    assert_eq!(judge(&some("dog", 1), &p), verdict(1.0, true, true));
    assert_eq!(judge(&some("cat", 1), &p), verdict(0.0, false, false));
    assert_eq!(judge(&[], &p), verdict(0.0, false, false));
    // Three where one is asked for: 1 - 2/1. The benchmark does not mind.
    assert_eq!(judge(&some("dog", 3), &p), verdict(-1.0, false, true));
}

#[test]
fn t21_two_objects() {
    let p = prompt("two_object", vec![clause("dog", 1), clause("cat", 1)]);
    assert_eq!(judge(&[some("dog", 1), some("cat", 1)].concat(), &p), verdict(1.0, true, true));
    assert_eq!(judge(&[some("dog", 1), some("cat", 2)].concat(), &p), verdict(0.5, false, true));
    assert_eq!(judge(&some("cat", 1), &p), verdict(0.5, false, false));
}

#[test]
fn t21_counting_has_its_own_threshold_and_exclusions_are_the_benchmarks_alone() {
    let three = Prompt {
        exclude: vec![Exclusion { class: "dog".into(), count: 4 }],
        ..prompt("counting", vec![clause("dog", 3)])
    };
    assert_eq!(judge(&some("dog", 3), &three), verdict(1.0, true, true));
    assert_eq!(judge(&some("dog", 4), &three), verdict(1.0 - 1.0 / 3.0, false, false));
    assert_eq!(judge(&some("dog", 2), &three), verdict(1.0 - 1.0 / 3.0, false, false));
    // One at the threshold itself does not count.
    let doubtful = [some("dog", 2), vec![at("dog", 0.9, 60.0, 0.0, None)]].concat();
    assert_eq!(judge(&doubtful, &three).dense, 1.0 - 1.0 / 3.0);
    assert_eq!(judge(&doubtful, &prompt("two_object", vec![clause("dog", 3)])), verdict(1.0, true, true));
    // The strict rule does not look at exclusions.
    let both = Prompt { exclude: vec![Exclusion { class: "cat".into(), count: 1 }], ..three };
    assert_eq!(judge(&[some("dog", 3), some("cat", 1)].concat(), &both), verdict(1.0, true, false));
}

#[test]
fn t21_colors() {
    let p = prompt("colors", vec![colored("dog", 2, Color::Red)]);
    let dogs = |colors: &[Option<Color>]| -> Vec<Detection> {
        colors.iter().enumerate().map(|(i, c)| at("dog", 0.9 - 0.1 * i as f64, 20.0 * i as f64, 0.0, *c)).collect()
    };
    let (red, blue) = (Some(Color::Red), Some(Color::Blue));
    assert_eq!(judge(&dogs(&[red, red]), &p), verdict(1.0, true, true));
    // Credits 1 and 1 - 1/2.
    assert_eq!(judge(&dogs(&[red, blue]), &p), verdict(0.75, false, false));
    assert_eq!(judge(&dogs(&[red, None]), &p), verdict(0.75, false, false));
    // A wrong number earns nothing for colours: 1 - 1/2 and 0. The benchmark looks at the two surest.
    assert_eq!(judge(&dogs(&[red, red, blue]), &p), verdict(0.25, false, true));
    assert_eq!(judge(&dogs(&[blue, red, red]), &p), verdict(0.25, false, false));
}

#[test]
fn t21_color_attribution_matches_the_giraffe_and_the_stop_sign() {
    let seen = [at("giraffe", 0.9, 0.0, 0.0, Some(Color::Brown)), at("stop sign", 0.9, 20.0, 0.0, Some(Color::Red))];
    let p = |a, b| prompt("color_attr", vec![colored("giraffe", 1, a), colored("stop sign", 1, b)]);
    assert_eq!(judge(&seen, &p(Color::Brown, Color::Red)), verdict(1.0, true, true));
    assert_eq!(judge(&seen, &p(Color::Brown, Color::White)), verdict(0.75, false, false));
    assert_eq!(judge(&seen, &p(Color::Red, Color::White)), verdict(0.5, false, false));
}

#[test]
fn t21_a_violated_position_costs_half_of_one_credit() {
    let above = Clause { position: Some((Relation::Above, 0)), ..clause("cat", 1) };
    let p = prompt("position", vec![clause("dog", 1), above]);
    let cat = |y| [at("dog", 0.9, 0.0, 40.0, None), at("cat", 0.9, 0.0, y, None)];
    assert_eq!(judge(&cat(0.0), &p), verdict(1.0, true, true));
    // Credits 1, 1, 0, 1.
    assert_eq!(judge(&cat(80.0), &p), verdict(0.75, false, false));
    // No dog: 0, then 1 for the one cat, then 0 because there is nothing to be above of.
    assert_eq!(judge(&cat(0.0)[1..], &p), verdict(1.0 / 3.0, false, false));
    // No cat: 1, then 0 for the number and 0 for the position.
    assert_eq!(judge(&cat(0.0)[..1], &p), verdict(1.0 / 3.0, false, false));
}

#[test]
fn a_wrong_color_leaves_the_position_unjudged() {
    let left = Clause { position: Some((Relation::LeftOf, 0)), ..colored("cat", 1, Color::Red) };
    let p = prompt("position", vec![colored("dog", 1, Color::Blue), left]);
    let seen = |dog, cat| [at("dog", 0.9, 40.0, 0.0, Some(dog)), at("cat", 0.9, 0.0, 0.0, Some(cat))];
    assert_eq!(judge(&seen(Color::Blue, Color::Red), &p), verdict(1.0, true, true));
    // 1, 1, 1, 0.
    assert_eq!(judge(&seen(Color::Blue, Color::Green), &p), verdict(0.75, false, false));
    // 1, 0, 1, 1, 0: the dog does not match, so there is no group to be left of.
    assert_eq!(judge(&seen(Color::Green, Color::Red), &p), verdict(0.6, false, false));
}

#[test]
fn relations_need_a_gap_and_two_may_hold_at_once() {
    let square = |x: f64, y: f64| [x, y, x + 10.0, y + 10.0];
    let held = |x, y| -> Vec<&str> {
        let all = Relation::ALL.iter().filter(|r| holds(&square(x, y), **r, &square(0.0, 0.0)));
        all.map(|r| r.name()).collect()
    };
    assert_eq!(held(0.0, 0.0), [""; 0]);
    // The centres must be more than 0.1 * (10 + 10) = 2 apart, and the rest more than half of the offset.
    assert_eq!(held(2.0, 0.0), [""; 0]);
    assert_eq!(held(4.0, 0.0), [""; 0]);
    assert_eq!(held(4.1, 0.0), ["right of"]);
    assert_eq!(held(-30.0, 0.0), ["left of"]);
    assert_eq!(held(0.0, -30.0), ["above"]);
    assert_eq!(held(30.0, 30.0), ["right of", "below"]);
    // Over the unrevised length: (10 - 2) / hypot(10, 12) = 0.512 and (12 - 2) / 15.62 = 0.640.
    assert_eq!(held(10.0, 12.0), ["right of", "below"]);
    assert_eq!(held(8.0, 12.0), ["below"]);
}

#[test]
fn at_most_sixteen_of_a_class_count() {
    let p = prompt("single_object", vec![clause("dog", 1)]);
    assert_eq!(judge(&some("dog", 40), &p).dense, 1.0 - 15.0);
}

#[test]
fn a_prompt_that_asks_for_nothing_has_no_score() {
    assert_eq!(judge(&some("dog", 1), &prompt("x", vec![])), verdict(0.0, true, true));
}
