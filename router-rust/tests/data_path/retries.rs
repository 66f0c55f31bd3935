//! Retries are few, however bad a day is.

use std::time::Duration;

use infini_router::router::retries::RetryBudget;
use tokio::time::Instant;

#[test]
fn retries_are_a_fifth_of_the_requests_or_three_a_second() {
    let (mut budget, now) = (RetryBudget::default(), Instant::now());
    let taken = |budget: &mut RetryBudget, tries: u32, second: u64| {
        (0..tries)
            .filter(|_| budget.take(now + Duration::from_secs(second)))
            .count()
    };
    assert_eq!(taken(&mut budget, 100, 0), 30);
    (0..1000).for_each(|_| budget.request());
    assert_eq!(taken(&mut budget, 1000, 1), 170);
    assert_eq!(taken(&mut budget, 100, 40), 30);
}
