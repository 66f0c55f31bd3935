from infinilm_router.router.retries import RetryBudget


def test_retries_are_a_fifth_of_the_requests_or_three_a_second() -> None:
    budget = RetryBudget()
    assert sum(budget.take(0.0) for _ in range(100)) == 30
    budget.requests += 1000
    assert sum(budget.take(1.0) for _ in range(1000)) == 170
    assert sum(budget.take(40.0) for _ in range(100)) == 30
