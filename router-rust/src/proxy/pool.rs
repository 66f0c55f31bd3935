//! Connections to engines: kept open between requests, for one request at a time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::proxy::heads::ResponseHead;
use crate::proxy::memo::HeadMemo;
use crate::router::table::{Service, ServiceTable};

pub const MAX_IDLE_PER_ENGINE: usize = 256;
/// The longest time that a connection outlives its engine's health or its own end in the pool.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// One connection to an engine.
pub struct UpstreamConnection {
    pub stream: TcpStream,
    pub heads: HeadMemo<ResponseHead>,
    idle_since: Instant,
}

impl UpstreamConnection {
    /// Whether an idle connection can take a request: open, and nothing has arrived on it.
    ///
    /// Asks the kernel, since the engine's end may not have been read yet: a request sent into a
    /// closing connection could not be told from one that the engine took. That holds for one
    /// that served a moment ago too: engines that close after an answer do so right then.
    fn is_alive(&self) -> bool {
        let peeked = SockRef::from(&self.stream).peek(&mut [MaybeUninit::uninit(); 1]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

type Ports = HashMap<u16, Vec<UpstreamConnection>>;

/// Idle connections by engine address, last used first. Each thread has its own.
pub struct UpstreamPool {
    pub idle_timeout: Cell<Duration>,
    pub connect_timeout: Cell<Duration>,
    idle: RefCell<HashMap<String, Ports>>,
    filled: Notify,
}

impl UpstreamPool {
    /// An empty pool.
    pub fn new(idle_timeout: Duration, connect_timeout: Duration) -> Self {
        Self {
            idle_timeout: Cell::new(idle_timeout),
            connect_timeout: Cell::new(connect_timeout),
            idle: RefCell::default(),
            filled: Notify::new(),
        }
    }

    /// An idle connection that is alive, None without one.
    pub fn checkout(&self, service: &Service, now: Instant) -> Option<UpstreamConnection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&service.host)?.get_mut(&service.port)?;
        while let Some(connection) = connections.pop() {
            if self.may_rest_on(&connection, now) && connection.is_alive() {
                return Some(connection);
            }
        }
        None
    }

    fn may_rest_on(&self, connection: &UpstreamConnection, now: Instant) -> bool {
        now.saturating_duration_since(connection.idle_since) < self.idle_timeout.get()
    }

    /// Give back a connection whose last answer ended exactly where it should.
    pub fn put(&self, mut connection: UpstreamConnection, service: &Service, now: Instant) {
        connection.idle_since = now;
        let mut idle = self.idle.borrow_mut();
        if !idle.contains_key(&service.host) {
            idle.insert(service.host.clone(), Ports::new());
        }
        let Some(ports) = idle.get_mut(&service.host) else {
            return;
        };
        let connections = ports.entry(service.port).or_default();
        if connections.len() < MAX_IDLE_PER_ENGINE {
            connections.push(connection);
            self.filled.notify_one();
        }
    }

    /// Open a new connection.
    ///
    /// # Errors
    ///
    /// Refused, unreachable, name unknown; `TimedOut` after the connect timeout.
    pub async fn connect(&self, service: &Service) -> io::Result<UpstreamConnection> {
        let connecting = TcpStream::connect((service.host.as_str(), service.port));
        let stream = timeout(self.connect_timeout.get(), connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        Ok(UpstreamConnection {
            stream,
            heads: HeadMemo::default(),
            idle_since: Instant::now(),
        })
    }

    /// Close what has rested for too long, has ended, or leads to engines that are gone or down.
    pub fn sweep(&self, table: &ServiceTable, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|host, ports| {
            ports.retain(|port, connections| {
                let mut up = table.healthy_engines.iter();
                if !up.any(|s| s.host == *host && s.port == *port) {
                    return false;
                }
                connections.retain(|found| self.may_rest_on(found, now) && found.is_alive());
                !connections.is_empty()
            });
            !ports.is_empty()
        });
    }

    /// Close all idle connections.
    pub fn close(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Sweep for ever, as long as there is something to sweep.
    pub async fn run(&self, table: impl Fn() -> std::sync::Arc<ServiceTable>) {
        loop {
            self.filled.notified().await;
            while !self.idle.borrow().is_empty() {
                sleep_until(Instant::now() + SWEEP_INTERVAL).await;
                self.sweep(&table(), Instant::now());
            }
        }
    }
}
