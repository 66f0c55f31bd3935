//! `GET /services`: every service the router knows, with its models.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::handlers::context::{Context, LocalAnswer, iso_time, json_answer};
use crate::router::table::{Service, ServiceTable};
use crate::utils::json;

/// All services of the table; babysitters are in it too, though they get no requests.
pub fn services(ctx: &Context) -> LocalAnswer {
    let table = ctx.store.current();
    let listed: Vec<Value> = table
        .services
        .iter()
        .map(|service| {
            let mut shown = describe(ctx, &table, service);
            shown["models"] = Value::from(service.models.clone());
            shown
        })
        .collect();
    let total = listed.len();
    json_answer(
        200,
        &json!({ "services": listed, "total": total, "registry_url": ctx.registry_url() }),
    )
}

/// One service as `/services` and `/stats` show it; times are seconds.
pub fn describe(ctx: &Context, table: &ServiceTable, service: &Service) -> Value {
    let load = ctx.load.view(service, Instant::now());
    let probes = ctx.prober.view(&service.name);
    let babysitter = service.netloc(u32::from(service.port) + 1);
    json!({
        "name": service.name,
        "host": service.host,
        "port": service.port,
        "url": service.url,
        "babysitter_url": format!("http://{babysitter}"),
        "healthy": table.is_up(service),
        "status": service.status,
        "down_reason": probes.down_reason,
        "source": service.source.as_str(),
        "backup": service.backup,
        "ejected": load.ejected,
        "busy": load.busy,
        "warming": load.warming,
        "in_flight": load.in_flight,
        "max_concurrency": load.max_concurrency,
        "prefill_requests": load.prefill_requests,
        "prefill_bytes": load.prefill_bytes,
        "request_count": load.request_count,
        "error_count": load.error_count,
        "response_time": rounded(load.response_time),
        "last_check": probes.last_check.map(iso_time),
        "weight": service.weight,
        "metadata": service.metadata,
    })
}

/// With six places at most.
fn rounded(seconds: f64) -> Value {
    json::decimal_number(format!("{seconds:.6}").parse().unwrap_or(seconds))
}
