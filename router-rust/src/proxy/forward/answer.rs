//! From the engine: the answer's head, its body, and what its end means.

use std::rc::Rc;

use serde_json::Value;
use tokio::time::Instant;

use super::{Answer, Exchange, Fault};
use crate::proxy::bodies::{BodyReader, response_body};
use crate::proxy::fields::{head_end, line_ends_are_clean};
use crate::proxy::heads::{
    Broken, MALFORMED, MAX_RESPONSE_HEAD, ResponseHead, parse_response_head,
};
use crate::proxy::pool::UpstreamConnection;
use crate::proxy::relay::has_content;
use crate::router::engine::Outcome;
use crate::router::load::InFlight;
use crate::router::selection::Choice;
use crate::utils::errors::Code;

impl Exchange<'_> {
    /// Bytes from the engine: the head first, then the body. Some = the answer is complete.
    pub(super) fn on_data(
        &mut self,
        data: &mut [u8],
        connection: &mut UpstreamConnection,
        in_flight: &mut InFlight,
    ) -> Result<Option<bool>, Fault> {
        self.last_activity = Instant::now();
        in_flight.heard(self.last_activity);
        if self.answer.is_some() {
            return self.on_body(data, in_flight);
        }
        let mut whole;
        let data = if self.partial.is_empty() {
            data
        } else {
            whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(data);
            &mut whole
        };
        match read_head(data, connection) {
            Err(Broken(text)) => Err(self.engine_broke(Code::UpstreamInvalid, &text)),
            Ok((start, None)) => {
                self.partial = data[start..].to_vec();
                Ok(None)
            }
            Ok((start, Some((head, length)))) => {
                self.begin_answer(head, length, in_flight)?;
                let ended = self.on_body(&mut data[start..], in_flight)?;
                self.set_deadline();
                Ok(ended)
            }
        }
    }

    fn begin_answer(
        &mut self,
        head: Rc<ResponseHead>,
        length: Option<u64>,
        in_flight: &mut InFlight,
    ) -> Result<(), Fault> {
        let now = self.last_activity;
        let status = head.status;
        self.first_byte_at = Some(now);
        self.outcome = in_flight.answered(status, head.retry_after, head.event_stream, now);
        if head.event_stream {
            self.content_awaited = true;
            if let Some(limit) = self.settings.stream_timeout {
                self.stream_end.set(now + limit);
            }
        }
        self.phase = "stream";
        let expected = head.event_stream && status == 200;
        self.answer = Some(Answer {
            reader: response_body(&head, length, &self.head.method),
            head,
            length,
        });
        if self.relay.started && !expected {
            let text = format!("it answered {status} after the stream to the client had begun");
            // It may be right all the same: its status says who is to blame.
            let error = self.bad_gateway(Code::UpstreamInvalid, &text);
            return Err(Fault::Engine(error, self.outcome));
        }
        Ok(())
    }

    /// Relay what came of the body, behind the head when that has not gone out yet.
    fn on_body(
        &mut self,
        data: &mut [u8],
        in_flight: &mut InFlight,
    ) -> Result<Option<bool>, Fault> {
        let own = if self.relay.started {
            Vec::new()
        } else {
            self.own_fields()
        };
        let Some(answer) = &mut self.answer else {
            return Ok(None);
        };
        let fed = answer.reader.feed(data);
        let done = answer.reader.is_done() && fed.fault.is_none();
        if self.content_awaited && has_content(&data[fed.payload.clone()]) {
            self.content_awaited = false;
            in_flight.first_byte(self.last_activity);
        }
        self.out.clear();
        if !self.relay.started {
            self.relay
                .start(&answer.head, answer.length, &own, &mut self.out);
        }
        let framed = self.relay.feed(&data[fed.payload], &mut self.out);
        let complete = done && self.is_complete();
        let end = if complete { self.relay.end() } else { b"" };
        self.client
            .send(&[&self.out, framed.payload, framed.after, end]);
        if let Some(fault) = fed.fault {
            return Err(self.engine_broke(Code::UpstreamInvalid, fault));
        }
        if done && !complete {
            return Err(self.cut_off());
        }
        Ok(done.then_some(fed.rest == data.len()))
    }

    /// Whether a body that has ended is all there, as far as can be seen.
    fn is_complete(&self) -> bool {
        let ends_by_closing = |choice: &Choice| {
            let end = choice.service.metadata.get("stream_end");
            end.and_then(Value::as_str) == Some("close")
        };
        self.relay.looks_complete() || self.choice.as_ref().is_some_and(ends_by_closing)
    }

    fn cut_off(&self) -> Fault {
        self.engine_broke(Code::UpstreamReset, "the stream ended without [DONE]")
    }

    /// The engine's connection ended before the answer did (or the answer ends with it).
    pub(super) fn on_lost(&mut self, orderly: bool) -> Result<bool, Fault> {
        let Some(answer) = &self.answer else {
            return Err(self.lost_before_head());
        };
        if orderly && matches!(answer.reader, BodyReader::UntilClose) {
            if !self.is_complete() {
                return Err(self.cut_off());
            }
            self.client.send(&[self.relay.end()]);
            return Ok(false);
        }
        let text = "it closed the connection before the end of its answer";
        Err(self.engine_broke(Code::UpstreamReset, text))
    }

    fn lost_before_head(&self) -> Fault {
        let text = "it closed the connection before it answered";
        let error = self.bad_gateway(Code::UpstreamReset, text);
        let untouched = !self.relay.started && self.partial.is_empty();
        if untouched && self.settings.retry_on_reset {
            Fault::Retry(error, Outcome::EngineFault)
        } else {
            Fault::Engine(error, Outcome::EngineFault)
        }
    }
}

type Headed = Option<(Rc<ResponseHead>, Option<u64>)>;

/// Take the head, past interim ones; returns where it ends, or where its incomplete rest begins.
fn read_head(data: &[u8], connection: &mut UpstreamConnection) -> Result<(usize, Headed), Broken> {
    let mut start = 0;
    loop {
        let rest = &data[start..];
        let Some(end) = head_end(rest, 0, MAX_RESPONSE_HEAD) else {
            check_partial_head(rest)?;
            return Ok((start, None));
        };
        let (head, length) = connection.heads.read(&rest[..end], parse_response_head)?;
        start += end;
        if head.status >= 200 {
            return Ok((start, Some((head, length))));
        }
    }
}

fn check_partial_head(data: &[u8]) -> Result<(), Broken> {
    let expected = b"HTTP/1.";
    let begun = &data[..data.len().min(MAX_RESPONSE_HEAD)];
    let known = begun.len().min(expected.len());
    if !line_ends_are_clean(begun) || begun[..known] != expected[..known] {
        return Err(Broken(MALFORMED.to_owned()));
    }
    if data.len() >= MAX_RESPONSE_HEAD {
        let text = format!("head larger than {MAX_RESPONSE_HEAD} bytes");
        return Err(Broken(text));
    }
    Ok(())
}
