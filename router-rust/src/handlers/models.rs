//! `GET /models`, `/v1/models`, `/v1/models/{id}`: from memory, never by asking engines.

use crate::handlers::context::{Context, LocalAnswer};
use crate::router::selection::nobody_up;
use crate::utils::errors::RouterError;

/// The union over healthy engines.
pub fn models(ctx: &Context) -> LocalAnswer {
    LocalAnswer::json(200, ctx.catalog.list())
}

/// One model object; the id's slashes may be plain or `%2F`.
///
/// It is an error, `model_not_found` or `no_healthy_engine`, that nobody serves it.
pub fn model(ctx: &Context, escaped_id: &[u8]) -> Result<LocalAnswer, RouterError> {
    let id = unescaped(escaped_id);
    let wanted = String::from_utf8_lossy(&id);
    let found = ctx.catalog.get(&wanted);
    let found = found.ok_or_else(|| nobody_up(&ctx.store.current(), Some(&wanted)))?;
    Ok(LocalAnswer::json(200, found))
}

/// `text` with each `%XX` as the byte it stands for.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut found = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let escape = (text[at] == b'%')
            .then(|| Some((digit(at + 1)?, digit(at + 2)?)))
            .flatten();
        let byte = escape.and_then(|(high, low)| u8::try_from(16 * high + low).ok());
        found.push(byte.unwrap_or(text[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    found
}
