//! `GET /health` and `GET /status`: how the router is.

use serde_json::{Value, json};

use crate::handlers::context::{Context, LocalAnswer, NOBODY, iso_now, json_answer};

/// 200 as long as the router takes requests, whatever its engines do; 503 while it drains.
pub fn health(ctx: &Context) -> LocalAnswer {
    answer(ctx, "healthy")
}

/// The same with its own word.
pub fn status(ctx: &Context) -> LocalAnswer {
    answer(ctx, "running")
}

fn answer(ctx: &Context, word: &str) -> LocalAnswer {
    let table = ctx.store.current();
    let up = table.healthy_engines.len();
    let draining = (ctx.draining)();
    let content = json!({
        "status": if draining { "draining" } else { word },
        "router": "running",
        "healthy_services": format!("{up}/{}", table.engines.len()),
        "registry_url": ctx.registry_url(),
        "message": if up > 0 { Value::Null } else { Value::from(NOBODY) },
        "timestamp": iso_now(),
    });
    let mut answer = json_answer(if draining { 503 } else { 200 }, &content);
    if draining {
        answer.headers.push(("Retry-After", "1"));
    }
    answer
}
