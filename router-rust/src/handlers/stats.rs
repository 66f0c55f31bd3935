//! `GET /stats`: counters of the router and of each service.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::handlers::context::{Context, LocalAnswer, iso_time, json_answer};
use crate::handlers::services::describe;
use crate::router::table::ServiceTable;

/// Counts over all services listed; `in_flight` counts requests at engines now.
pub fn stats(ctx: &Context) -> LocalAnswer {
    let table = ctx.store.current();
    let listed: Vec<Value> = table
        .services
        .iter()
        .map(|service| describe(ctx, &table, service))
        .collect();
    json_answer(
        200,
        &json!({
            "total_services": listed.len(),
            "healthy_services": table.services.iter().filter(|s| table.is_up(s)).count(),
            "registry_url": ctx.registry_url(),
            "in_flight": ctx.load.in_flight(),
            "draining": (ctx.draining)(),
            "panic": panic(ctx, &table),
            "started_at": iso_time(ctx.started_at),
            "services": listed,
        }),
    )
}

/// Whether ejection is overridden for some model, as selection does when it takes over half.
fn panic(ctx: &Context, table: &ServiceTable) -> bool {
    let (book, now) = (ctx.load.lock(), Instant::now());
    let ejected = |name: &str| book.get(name).is_some_and(|load| load.is_ejected(now));
    table.by_model.keys().any(|model| {
        let up = table.candidates(Some(model));
        2 * up.iter().filter(|engine| ejected(&engine.name)).count() > up.len()
    })
}
