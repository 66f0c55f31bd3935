//! `GET /stats`: counters of the router and of each service.

use serde_json::{Value, json};

use crate::handlers::context::{Context, LocalAnswer, iso_time, json_answer};
use crate::handlers::services::describe;

/// Counts over all services listed; `in_flight` counts requests at engines now.
///
/// `requests` have had their outcome, `failures` are those of them that failed, by code.
/// `queued` counts those that wait for one, `queues` the same for each model (null: any model).
pub fn stats(ctx: &Context) -> LocalAnswer {
    let table = ctx.store.current();
    let counters = ctx.counters.total();
    let listed: Vec<Value> = table
        .services
        .iter()
        .map(|service| describe(ctx, &table, service))
        .collect();
    let queues: Vec<Value> = ctx
        .room
        .lengths()
        .into_iter()
        .map(|(model, waiting)| json!({ "model": model, "waiting": waiting }))
        .collect();
    json_answer(
        200,
        &json!({
            "total_services": listed.len(),
            "healthy_services": table.services.iter().filter(|s| table.is_up(s)).count(),
            "registry_url": ctx.registry_url(),
            "in_flight": ctx.load.in_flight(),
            "requests": counters.requests(),
            "failures": counters.by_code(),
            "retries": counters.retries.values().sum::<u64>(),
            "queued": ctx.load.waiting(),
            "queues": queues,
            "draining": (ctx.draining)(),
            "panic": table.panic(),
            "started_at": iso_time(ctx.started_at),
            "services": listed,
        }),
    )
}
