//! Outcomes are counted once, in series whose number no client can raise.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use infini_router::utils::metrics::{
    AllCounters, Counters, Exposition, FIRST_BYTE_BOUNDS, Failure, Histogram, MAX_LABELS,
    at_known_engines, locked,
};

fn failure(engine: &str, phase: &'static str, code: &'static str) -> Failure {
    Failure {
        engine: engine.to_owned(),
        phase,
        code,
    }
}

fn reset(engine: &str) -> Failure {
    failure(engine, "stream", "upstream_reset")
}

fn named(models: &[&str]) -> HashSet<String> {
    models.iter().map(|&model| model.to_owned()).collect()
}

const SOON: Option<Duration> = Some(Duration::from_millis(10));

#[test]
fn each_request_has_one_outcome() {
    let (mut counters, known) = (Counters::default(), named(&["m"]));
    counters.ended(Some("m"), &known, None, Some(Duration::from_millis(200)));
    counters.ended(
        Some("m"),
        &known,
        Some(reset("a")),
        Some(Duration::from_millis(300)),
    );
    let bad = failure("", "client", "invalid_request");
    counters.ended(None, &known, Some(bad), None);
    assert_eq!(
        counters.models["m"].requests,
        BTreeMap::from([("ok", 1), ("upstream_reset", 1)])
    );
    assert_eq!(
        counters.models["other"].requests,
        BTreeMap::from([("invalid_request", 1)])
    );
    assert_eq!(counters.requests(), 3);
    assert_eq!(
        counters.by_code(),
        BTreeMap::from([("invalid_request", 1), ("upstream_reset", 1)])
    );
    assert_eq!(counters.models["m"].first_byte.counts[2..4], [1, 1]);
    assert_eq!(counters.models["other"].first_byte, Histogram::default());
}

#[test]
fn an_attempt_that_was_retried_is_no_outcome() {
    let mut counters = Counters::default();
    counters.retried(reset("a"));
    assert_eq!((counters.requests(), counters.failures.len()), (0, 0));
    assert_eq!(counters.retries, BTreeMap::from([(reset("a"), 1)]));
}

#[test]
fn clients_that_make_up_models_make_no_series() {
    let (mut counters, known) = (Counters::default(), named(&["m"]));
    for number in 0..10_000 {
        let unknown = failure("", "choose", "model_not_found");
        counters.ended(
            Some(&format!("made-up-{number}")),
            &known,
            Some(unknown),
            None,
        );
    }
    assert_eq!(counters.models.len(), 1);
    assert_eq!(counters.models["other"].requests["model_not_found"], 10_000);
}

#[test]
fn models_and_engines_without_end_share_a_label() {
    let mut counters = Counters::default();
    let count = 3 * MAX_LABELS;
    let names: HashSet<String> = (0..count).map(|number| format!("n{number}")).collect();
    for name in &names {
        let refused = failure(name, "connect", "connect_failed");
        counters.ended(Some(name), &names, Some(refused), SOON);
    }
    assert_eq!(counters.models.len(), MAX_LABELS + 1);
    assert_eq!(counters.failures.len(), MAX_LABELS + 1);
    assert_eq!(counters.requests(), count as u64);
    let other = failure("other", "connect", "connect_failed");
    assert_eq!(counters.failures[&other], 2 * MAX_LABELS as u64);
}

#[test]
fn what_threads_count_is_added_up() {
    let (all, known) = (AllCounters::default(), named(&["m"]));
    for number in 0..3 {
        let counters = all.for_thread();
        let mut counters = locked(&counters);
        counters.ended(Some("m"), &known, None, SOON);
        counters.ended(None, &known, Some(reset("a")), None);
        counters.retried(reset("b"));
        counters.bytes_sent += number;
    }
    let total = all.total();
    assert_eq!((total.requests(), total.bytes_sent), (6, 3));
    assert_eq!(total.models["m"].first_byte.counts[0], 3);
    assert_eq!(total.failures, BTreeMap::from([(reset("a"), 3)]));
    assert_eq!(total.retries, BTreeMap::from([(reset("b"), 3)]));
}

#[test]
fn engines_that_are_gone_are_counted_together() {
    let counts = [
        (reset("a"), 1),
        (reset("gone"), 2),
        (reset("left"), 3),
        (reset(""), 4),
    ];
    let found = at_known_engines(&BTreeMap::from(counts), |name| name == "a");
    let expected = [(reset(""), 4), (reset("a"), 1), (reset("other"), 5)];
    assert_eq!(found, BTreeMap::from(expected));
}

#[test]
fn a_bound_belongs_to_what_is_below_it() {
    let mut histogram = Histogram::default();
    for value in [0.0, 0.025, 0.0251, 300.0, 1e9] {
        histogram.observe(value);
    }
    let mut expected = [0; FIRST_BYTE_BOUNDS.len() + 1];
    (expected[0], expected[1]) = (2, 1);
    (expected[10], expected[11]) = (1, 1);
    assert_eq!(histogram.counts, expected);
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let (mut out, mut histogram) = (Exposition::default(), Histogram::default());
    histogram.observe(0.05);
    histogram.observe(7.5);
    out.begin("x_total", "counter", "About it.");
    out.sample("x_total", &[("engine", "a\"\\\n")], 3);
    out.sample("x_total", &[], 0);
    out.histogram("z", "m", &histogram);
    let text = out.into_text();
    let lines: Vec<&str> = text.split('\n').collect();
    assert_eq!(
        lines[..6],
        [
            "# HELP x_total About it.",
            "# TYPE x_total counter",
            "x_total{engine=\"a\\\"\\\\\\n\"} 3",
            "x_total 0",
            "z_bucket{model=\"m\",le=\"0.025\"} 0",
            "z_bucket{model=\"m\",le=\"0.1\"} 1",
        ]
    );
    assert_eq!(
        lines[lines.len() - 5..],
        [
            "z_bucket{model=\"m\",le=\"300\"} 2",
            "z_bucket{model=\"m\",le=\"+Inf\"} 2",
            "z_sum{model=\"m\"} 7.550000",
            "z_count{model=\"m\"} 2",
            "",
        ]
    );
}
