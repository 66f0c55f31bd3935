//! `GET /metrics`: counters and gauges in Prometheus' text format (docs/METRICS.md).

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::handlers::context::{Context, LocalAnswer};
use crate::router::engine::LoadView;
use crate::router::table::{Service, ServiceTable};
use crate::utils::metrics::{
    CONTENT_TYPE, Counters, Exposition, Failure, Histogram, OTHER, at_known_engines, decimal,
};

const PREFIX: &str = "infinilm_router_";

/// All of it; engines are those of the table, in its order.
pub fn metrics(ctx: &Context) -> LocalAnswer {
    let mut out = Exposition::default();
    let table = ctx.store.current();
    add_requests(&table, &ctx.counters.total(), &mut out);
    add_engines(ctx, &table, &mut out);
    add_probes(ctx, &table, &mut out);
    add_queues(ctx, &mut out);
    add_router(ctx, &table, &mut out);
    LocalAnswer {
        content_type: CONTENT_TYPE,
        ..LocalAnswer::json(200, out.into_text())
    }
}

fn begin(out: &mut Exposition, name: &str, kind: &str, about: &str) -> String {
    let name = format!("{PREFIX}{name}");
    out.begin(&name, kind, about);
    name
}

fn add_requests(table: &ServiceTable, counters: &Counters, out: &mut Exposition) {
    let models: BTreeMap<_, _> = counters.models.iter().collect();
    let about = "Requests by their outcome: ok, or the code of their failure.";
    let name = begin(out, "requests_total", "counter", about);
    for (model, counts) in &models {
        for (code, count) in &counts.requests {
            out.sample(&name, &[("model", model), ("code", code)], count);
        }
    }
    let about = "Failed requests by engine, phase and code.";
    let name = begin(out, "failures_total", "counter", about);
    add_failures(table, &name, &counters.failures, out);
    let about =
        "Failed attempts that were not the end of their request, by engine, phase and code.";
    let name = begin(out, "retries_total", "counter", about);
    add_failures(table, &name, &counters.retries, out);
    let about = "From the whole request to the head of the answer.";
    let name = begin(out, "time_to_first_byte_seconds", "histogram", about);
    for (model, counts) in models {
        if counts.first_byte != Histogram::default() {
            out.histogram(&name, model, &counts.first_byte);
        }
    }
    let about = "Bytes of answers that were passed on.";
    let name = begin(out, "response_bytes_total", "counter", about);
    out.sample(&name, &[], counters.bytes_sent);
}

fn add_failures(
    table: &ServiceTable,
    name: &str,
    counts: &BTreeMap<Failure, u64>,
    out: &mut Exposition,
) {
    let names: HashSet<&str> = table.services.iter().map(|s| s.name.as_str()).collect();
    for (failure, count) in at_known_engines(counts, |name| names.contains(name)) {
        let Failure {
            engine,
            phase,
            code,
        } = &failure;
        let labels = [
            ("engine", engine.as_str()),
            ("phase", phase),
            ("code", code),
        ];
        out.sample(name, &labels, count);
    }
}

fn add_engines(ctx: &Context, table: &ServiceTable, out: &mut Exposition) {
    type Value<'a> = &'a dyn Fn(&Service, LoadView) -> u64;
    let now = Instant::now();
    let found: [(&str, &str, &str, Value<'_>); 9] = [
        (
            "up",
            "gauge",
            "1 = registry and probes say that it takes requests.",
            &|service, _| table.is_up(service).into(),
        ),
        ("down", "gauge", "1 = its probes fail.", &|service, _| {
            table.down.contains(&service.name).into()
        }),
        (
            "ejected",
            "gauge",
            "1 = it gets no requests for a while, because they failed on it.",
            &|_, load| load.ejected.into(),
        ),
        ("busy", "gauge", "1 = it asked for a pause.", &|_, load| {
            load.busy.into()
        }),
        (
            "in_flight",
            "gauge",
            "Requests that it serves now.",
            &|_, load| load.in_flight.into(),
        ),
        (
            "max_concurrency",
            "gauge",
            "Requests that it gets at once, at most.",
            &|_, load| load.max_concurrency.into(),
        ),
        (
            "prefill_requests",
            "gauge",
            "Requests sent to it that have no first byte yet.",
            &|_, load| load.prefill_requests.into(),
        ),
        (
            "prefill_bytes",
            "gauge",
            "Bytes of the prompts in those.",
            &|_, load| load.prefill_bytes,
        ),
        (
            "requests_total",
            "counter",
            "Requests sent to it, second attempts included.",
            &|_, load| load.request_count,
        ),
    ];
    for (name, kind, about, value) in found {
        let name = begin(out, &format!("engine_{name}"), kind, about);
        for engine in &table.engines {
            let load = ctx.load.view(engine, now);
            out.sample(&name, &[("engine", &engine.name)], value(engine, load));
        }
    }
}

fn add_probes(ctx: &Context, table: &ServiceTable, out: &mut Exposition) {
    let about = "Finished probes by what they found.";
    let name = begin(out, "engine_probes_total", "counter", about);
    for engine in &table.engines {
        for (result, count) in ctx.prober.view(&engine.name).results {
            let labels = [("engine", engine.name.as_str()), ("result", result)];
            out.sample(&name, &labels, count);
        }
    }
}

/// What waits for any model is `other`, as in the counts of requests.
fn add_queues(ctx: &Context, out: &mut Exposition) {
    let name = begin(
        out,
        "queued",
        "gauge",
        "Requests that wait for an engine now.",
    );
    let mut counts = BTreeMap::<String, usize>::new();
    for (model, count) in ctx.room.lengths() {
        // A model may have that very name.
        *counts
            .entry(model.unwrap_or_else(|| OTHER.to_owned()))
            .or_default() += count;
    }
    for (model, count) in &counts {
        out.sample(&name, &[("model", model)], count);
    }
}

fn add_router(ctx: &Context, table: &ServiceTable, out: &mut Exposition) {
    let panic = u32::from(table.panic()).to_string();
    let draining = u32::from((ctx.draining)()).to_string();
    let connections = ctx.connections.load(Ordering::Relaxed).to_string();
    let gauges = [
        (
            "panic",
            "1 = probes leave less than half of some model's engines.",
            panic,
        ),
        ("draining", "1 = it is stopping.", draining),
        (
            "client_connections",
            "Open connections of clients.",
            connections,
        ),
        (
            "start_time_seconds",
            "When it started, in seconds since 1970.",
            decimal(ctx.started_at),
        ),
    ];
    for (name, about, value) in gauges {
        let name = begin(out, name, "gauge", about);
        out.sample(&name, &[], value);
    }
}
