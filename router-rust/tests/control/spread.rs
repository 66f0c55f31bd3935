//! R14: probes keep apart: no two of 20 engines within 10 ms in more than a fifth of the rounds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use infini_router::router::spread::Spread;
use tokio::time::Instant;

const ENGINES: usize = 20;
const INTERVAL: f64 = 5.0;
const ROUNDS: usize = 200;
const NEAR: Duration = Duration::from_millis(10);

/// When each engine is probed; all of them begin at the same moment.
fn probe_times() -> Vec<(Duration, usize)> {
    let began = Instant::now();
    let mut spread = Spread::default();
    let mut waiting: BinaryHeap<_> = (0..ENGINES).map(|e| Reverse((began, e))).collect();
    let mut times = Vec::new();
    while times.len() < ENGINES * ROUNDS {
        let Reverse((now, engine)) = waiting.pop().unwrap();
        times.push((now - began, engine));
        spread.done(now);
        waiting.push(Reverse((spread.next(now, INTERVAL), engine)));
    }
    times
}

#[test]
fn no_round_has_two_probes_within_10_ms_but_one_in_five_at_most() {
    let times = probe_times();
    let round = |time: Duration| time.as_secs() / 5;
    let near: HashSet<u64> = times
        .windows(2)
        .filter(|pair| pair[1].0 < pair[0].0 + NEAR)
        .map(|pair| round(pair[0].0))
        .collect();
    let rounds = round(times.last().unwrap().0);
    assert!(5 * near.len() as u64 <= rounds, "{near:?} of {rounds}");
}

#[test]
fn every_engine_keeps_its_interval_give_or_take_a_tenth() {
    let mut last = HashMap::new();
    for (now, engine) in probe_times() {
        if let Some(before) = last.insert(engine, now) {
            let gap = now.saturating_sub(before).as_secs_f64();
            assert!((4.499..=5.501).contains(&gap), "{gap}");
        }
    }
}

#[test]
fn what_is_given_back_is_in_nobodys_way() {
    let now = Instant::now();
    let mut spread = Spread::with_draw(|| 0.5);
    let (first, second) = (spread.next(now, 5.0), spread.next(now, 5.0));
    assert!(first < second && second - first < Duration::from_millis(1));
    spread.done(first);
    spread.done(second);
    assert_eq!(spread.next(now, 5.0), first);
}
