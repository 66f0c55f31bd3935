//! One serving thread: its listeners, its clients, and its way through the drain.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::proxy::gateway::{Gateway, Settings, Shared};
use crate::proxy::server::serve_client;
use crate::utils::errors::{Code, RouterError};

/// Time for look-ups of names to end with the router.
pub const LOOKUPS_TIME: Duration = Duration::from_secs(1);
/// Time for the requests of those who connected last.
const LAST_REQUESTS: Duration = Duration::from_millis(250);
const QUIET_CHECK: Duration = Duration::from_millis(50);
/// Time for the last error events to reach their clients.
const ERROR_EVENT_TIME: Duration = Duration::from_secs(1);
/// The same, after a second signal.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Between two lines about a drain under way.
const NEWS: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How far the router has come on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Still serving, but connections close after their answer.
    Draining,
    /// The same without new connections: a successor accepts them.
    HandedOver,
    /// The port closes; what runs may end by itself.
    Closing,
    /// What still runs is ended with an error.
    Ending,
    /// The same, at once.
    Stopped,
}

/// What every thread is told.
#[derive(Clone)]
pub struct Orders {
    pub phase: Phase,
    pub settings: Arc<Settings>,
}

/// The threads that serve, and the way to tell them what to do.
pub struct Workers {
    pub shared: Arc<Shared>,
    orders: watch::Sender<Orders>,
    /// Ends when every worker has.
    running: mpsc::Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// One thread for each group of listeners; the one that calls serves the last.
    ///
    /// # Errors
    ///
    /// There can't be so many threads.
    pub fn start(
        shared: Arc<Shared>,
        settings: Arc<Settings>,
        mut listeners: Vec<Vec<TcpListener>>,
    ) -> io::Result<Self> {
        let phase = Phase::Serving;
        let (orders, receiver) = watch::channel(Orders { phase, settings });
        let (alive, running) = mpsc::channel(1);
        let own = listeners.pop().unwrap_or_default();
        let mut threads = Vec::new();
        for listeners in listeners {
            let (shared, orders) = (Arc::clone(&shared), receiver.clone());
            let (alive, runtime) = (alive.clone(), new_runtime()?);
            threads.push(std::thread::Builder::new().spawn(move || {
                let _alive = alive;
                LocalSet::new().block_on(&runtime, serve_thread(shared, listeners, orders));
                runtime.shutdown_timeout(LOOKUPS_TIME);
            })?);
        }
        tokio::task::spawn_local({
            let shared = Arc::clone(&shared);
            async move {
                let _alive = alive;
                serve_thread(shared, own, receiver).await;
            }
        });
        Ok(Self {
            shared,
            orders,
            running,
            threads,
        })
    }

    /// Serve by these settings from now on.
    pub fn configure(&self, settings: Arc<Settings>) {
        self.orders.send_modify(|orders| orders.settings = settings);
    }

    /// Go on to `phase`.
    pub fn order(&self, phase: Phase) {
        self.orders.send_modify(|orders| orders.phase = phase);
    }

    /// Balancers see /health say 503 for `delay`, then the port closes, then the rest ends.
    pub async fn drained(&mut self, delay: Duration) {
        sleep(delay).await;
        self.order(Phase::Closing);
        self.ended().await;
    }

    /// Return when no thread serves any more.
    pub async fn ended(&mut self) {
        while self.running.recv().await.is_some() {}
    }

    /// Wait for the threads themselves.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a serving thread died");
            }
        }
    }
}

/// Whoever waits for the end sees that it comes nearer; after a hand-over nothing else tells.
pub async fn tell(shared: &Shared) -> ! {
    loop {
        sleep(NEWS).await;
        info!("still draining in_flight={}", shared.book.in_flight());
    }
}

/// The runtime of one thread.
///
/// # Errors
///
/// The system has no resources for it.
pub fn new_runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Serve what these listeners accept; returns when the drain is over. Runs in a `LocalSet`.
pub async fn serve_thread(
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
    mut orders: watch::Receiver<Orders>,
) {
    let settings = Arc::clone(&orders.borrow_and_update().settings);
    let gateway = Rc::new(Gateway::new(shared, settings));
    let sweeping = tokio::task::spawn_local({
        let gateway = Rc::clone(&gateway);
        async move { gateway.pool.run(|| gateway.shared.store.current()).await }
    });
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| accept(Rc::clone(&gateway), listener, orders.clone()))
        .map(tokio::task::spawn_local)
        .collect();
    follow(&gateway, &mut orders, Phase::Closing).await;
    for task in accepting {
        // It ends when the port closes; what it accepted last is served like the others.
        let _ = task.await;
    }
    tokio::select! {
        () = sleep(LAST_REQUESTS) => {}
        () = follow(&gateway, &mut orders, Phase::Ending) => {}
    }
    for client in gateway.clients.borrow().values() {
        client.close_if_idle();
    }
    tokio::select! {
        () = quiet(&gateway) => {}
        () = follow(&gateway, &mut orders, Phase::Ending) => end_the_rest(&gateway, &orders).await,
    }
    sweeping.abort();
    gateway.pool.close();
    gateway.access_log.flush();
}

/// Do as told until the router has come to `phase`.
async fn follow(gateway: &Gateway, orders: &mut watch::Receiver<Orders>, phase: Phase) {
    loop {
        let current = orders.borrow_and_update().clone();
        gateway.configure(current.settings);
        gateway.draining.set(current.phase >= Phase::Draining);
        if current.phase >= phase || orders.changed().await.is_err() {
            return;
        }
    }
}

/// Wait until no client is in the middle of a request or an answer.
async fn quiet(gateway: &Gateway) {
    while gateway
        .clients
        .borrow()
        .values()
        .any(|client| client.is_busy())
    {
        sleep(QUIET_CHECK).await;
    }
}

/// Tell the streams that outlive the drain; never end them silently.
async fn end_the_rest(gateway: &Gateway, orders: &watch::Receiver<Orders>) {
    let stopped = orders.borrow().phase == Phase::Stopped;
    let patience = if stopped { AT_ONCE } else { ERROR_EVENT_TIME };
    let error = RouterError::new(Code::Draining, "the router is stopping").closing();
    for client in gateway.clients.borrow().values() {
        client.abort(error.clone());
    }
    // Clients that do not take their event in time are left behind.
    let _ = timeout(patience, quiet(gateway)).await;
}

/// Accept until the port closes or is handed over.
async fn accept(gateway: Rc<Gateway>, listener: TcpListener, mut orders: watch::Receiver<Orders>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return warn!("can't accept reason={error}"),
    };
    let mut closing = pin!(orders.wait_for(|orders| orders.phase >= Phase::HandedOver));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            phase = &mut closing => {
                if phase.is_ok_and(|orders| orders.phase != Phase::HandedOver) {
                    accept_waiting(&gateway, listener);
                }
                return;
            }
        };
        if let Err(error) = accepted.map(|(stream, peer)| serve(&gateway, stream, peer.ip())) {
            warn!("connection not accepted reason={error}");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Whoever waits in the queue came in time: closing would reset him.
fn accept_waiting(gateway: &Rc<Gateway>, listener: tokio::net::TcpListener) {
    let Ok(listener) = listener.into_std() else {
        return;
    };
    // The system is asked: tokio knows only what it heard when it last slept.
    while let Ok((stream, peer)) = listener.accept() {
        let taken = stream.set_nonblocking(true);
        if let Ok(stream) = taken.and_then(|()| TcpStream::from_std(stream)) {
            serve(gateway, stream, peer.ip());
        }
    }
}

fn serve(gateway: &Rc<Gateway>, stream: TcpStream, peer: IpAddr) {
    // It fails for a client that has already left.
    if stream.set_nodelay(true).is_ok() {
        tokio::task::spawn_local(serve_client(Rc::clone(gateway), stream, peer));
    }
}
