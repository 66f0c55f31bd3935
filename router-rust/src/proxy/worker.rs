//! One serving thread: its listeners, its clients, and its way through the drain.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::proxy::gateway::{Gateway, Settings, Shared};
use crate::proxy::server::serve_client;
use crate::utils::errors::{Code, RouterError};

const QUIET_CHECK: Duration = Duration::from_millis(50);
/// Time for the last error events to reach their clients.
const ERROR_EVENT_TIME: Duration = Duration::from_secs(1);
/// The same, after a second signal.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Pause after a connection could not be accepted, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How far the router has come on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Still serving, but connections close after their answer.
    Draining,
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
        .map(|listener| tokio::task::spawn_local(accept(Rc::clone(&gateway), listener)))
        .collect();
    follow(&gateway, &mut orders, Phase::Closing).await;
    stop_accepting(accepting).await;
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

async fn stop_accepting(accepting: Vec<JoinHandle<()>>) {
    for task in accepting {
        task.abort();
        // It ends by being aborted; the listener closes with it.
        let _ = task.await;
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

async fn accept(gateway: Rc<Gateway>, listener: TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return warn!("can't accept reason={error}"),
    };
    loop {
        if let Err(error) = accept_one(&gateway, &listener).await {
            warn!("connection not accepted reason={error}");
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

async fn accept_one(gateway: &Rc<Gateway>, listener: &tokio::net::TcpListener) -> io::Result<()> {
    let (stream, peer) = listener.accept().await?;
    // It fails for a client that has already left.
    if stream.set_nodelay(true).is_ok() {
        tokio::task::spawn_local(serve_client(Rc::clone(gateway), stream, peer.ip()));
    }
    Ok(())
}
