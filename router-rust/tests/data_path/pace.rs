//! How fast requests leave a queue.

use infini_router::router::pace::Pace;
use std::time::Duration;
use tokio::time::Instant;

#[test]
fn the_pace_forgets_what_is_long_ago() {
    let begun = Instant::now();
    let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
    let mut pace = Pace::new(begun);
    assert!(pace.rate(at(1.0)).abs() < 1e-9);
    for tenth in 0..100_u8 {
        pace.count(at(f64::from(tenth) / 10.0));
    }
    assert!((pace.rate(at(10.0)) - 10.0).abs() < 0.01);
    assert!((pace.rate(at(15.0)) - 100.0 / 15.0).abs() < 0.01);
    assert!(pace.rate(at(40.0)).abs() < 1e-9);
}
