//! How exchanges end: what the client is told, what the log says.

use std::io;

use super::{Exchange, FailedAttempt, Fault};
use crate::proxy::relay::After;
use crate::router::engine::Outcome;
use crate::router::selection::explain;
use crate::router::table::Service;
use crate::utils::access_log::{Attempt, Record};
use crate::utils::errors::{Code, ENGINE_ERROR, RouterError};
use crate::utils::headers::push_decimal;
use crate::utils::metrics::Failure;

impl Exchange<'_> {
    pub(super) fn engine_broke(&self, code: Code, detail: &str) -> Fault {
        Fault::Engine(self.bad_gateway(code, detail), Outcome::EngineFault)
    }

    pub(super) fn bad_gateway(&self, code: Code, detail: &str) -> RouterError {
        let name = self
            .choice
            .as_ref()
            .map_or("-", |choice| &choice.service.name);
        let text = match code {
            Code::FirstByteTimeout | Code::IdleTimeout => "Service timeout",
            _ => "Bad gateway - error communicating with service",
        };
        RouterError::new(code, format!("{text}: engine '{name}': {detail}"))
    }

    pub(super) fn fail(&mut self, mut error: RouterError) -> After {
        if self.choice.as_ref().is_some_and(|choice| choice.panic) {
            error = explain(error, &self.gateway.shared.store.peek(), &self.request);
        }
        if !self.relay.started {
            self.relay.status = error.http_status();
        }
        self.end(Some((error.code.text(), &error.message)));
        if !self.relay.started {
            let own = self.own_fields();
            return self.client.answer_error(&error, &self.head, &own);
        }
        self.out.clear();
        let after = self
            .relay
            .break_off(&error, &self.request_id, &mut self.out);
        self.client.send(&[&self.out]);
        after
    }

    /// The answer is complete.
    pub(super) fn served(&mut self) {
        let status = self.relay.status;
        let Some(choice) = self.choice.as_ref().filter(|_| status >= 500) else {
            return self.end(None);
        };
        let reason = format!("engine '{}' answered {status}", choice.service.name);
        self.phase = "first_byte"; // its head said so
        self.end(Some((ENGINE_ERROR, &reason)));
    }

    /// Account for the request's one outcome: a code with its reason, None = it went well.
    pub(super) fn end(&mut self, failed: Option<(&'static str, &str)>) {
        self.tell_failed_attempt();
        let failure = failed.map(|(code, reason)| (self.failure(code), reason));
        let record = Record {
            request_id: &self.request_id,
            client: &self.client.peer,
            method: &self.head.method,
            path: self.head.path(),
            request: &self.request,
            status: self.relay.status,
            choice: self.choice.as_ref(),
            attempts: self.attempts,
            started: self.started,
            first_byte_at: self.first_byte_at,
            bytes_sent: self.relay.bytes_sent,
            failure: failure.as_ref().map(|(failure, reason)| (failure, *reason)),
        };
        self.gateway.exchange_ended(&record);
    }

    fn failure(&self, code: &'static str) -> Failure {
        let engine = self.choice.as_ref().map(|choice| &choice.service.name);
        Failure {
            engine: engine.cloned().unwrap_or_default(),
            phase: self.phase,
            code,
        }
    }

    pub(super) fn failed_attempt(&self, error: &RouterError) -> FailedAttempt {
        FailedAttempt {
            number: self.attempts,
            failure: self.failure(error.code.text()),
            reason: error.message.clone(),
        }
    }

    /// Account for the attempt before this one, whose failure is not the request's.
    pub(super) fn tell_failed_attempt(&mut self) {
        let Some(failed) = self.failed.take() else {
            return;
        };
        self.gateway.attempt_failed(&Attempt {
            request_id: &self.request_id,
            number: failed.number,
            started: self.started,
            failure: &failed.failure,
            reason: &failed.reason,
        });
        if self.phase != "queue" {
            self.phase = "choose";
        }
    }

    /// The router's own fields of the answer, as they stand on the wire.
    pub(super) fn own_fields(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(192);
        out.extend_from_slice(b"x-request-id: ");
        out.extend_from_slice(self.request_id.as_bytes());
        if let Some(choice) = &self.choice {
            out.extend_from_slice(b"\r\nx-infinilm-service: ");
            out.extend_from_slice(choice.service.name.as_bytes());
            out.extend_from_slice(b"\r\nx-infinilm-attempts: ");
            push_decimal(&mut out, u64::from(self.attempts));
            out.extend_from_slice(b"\r\nx-infinilm-policy: ");
            out.extend_from_slice(choice.policy.as_bytes());
            out.extend_from_slice(choice.why.as_bytes());
            out.extend_from_slice(choice.suffix().as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// What is told of an engine that can't be reached.
pub(super) fn connect_failed(service: &Service, error: &io::Error) -> RouterError {
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => "connection timed out".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => format!("connection failed ({error})"),
    };
    let text = format!("Service unavailable - {reason}: engine '{}'", service.name);
    RouterError::new(Code::ConnectFailed, text)
}
