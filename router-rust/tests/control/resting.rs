//! Connections that rest between requests.

use std::future::Future;
use std::sync::Arc;

use infini_router::config::RouterConfig;
use infini_router::proxy::gateway::{Settings, Shared};
use infini_router::proxy::worker::{Orders, Phase, serve_thread};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::handlers::Router;
use crate::rig::quick;

/// A router at work, its connections, and what it is told.
struct Serving {
    address: std::net::SocketAddr,
    orders: watch::Sender<Orders>,
}

fn settings(max_body_bytes: u64) -> Arc<Settings> {
    Arc::new(Settings::new(Arc::new(RouterConfig {
        max_body_bytes,
        ..quick()
    })))
}

/// Run a test beside a router that takes bodies of 100 bytes.
async fn beside_router<F: Future<Output = ()>>(test: impl FnOnce(Serving) -> F) {
    let context = Router::new(quick()).context;
    let (store, load, room) = (&context.store, &context.load, &context.room);
    let (store, load, room) = (Arc::clone(store), Arc::clone(load), Arc::clone(room));
    let shared = Arc::new(Shared::new(store, load, room, context));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (phase, settings) = (Phase::Serving, settings(100));
    let (orders, receiver) = watch::channel(Orders { phase, settings });
    let thread = LocalSet::new();
    let work = async {
        spawn_local(serve_thread(shared, vec![listener], receiver));
        test(Serving { address, orders }).await;
    };
    thread.run_until(work).await;
}

/// Post a body of 50 bytes; the status of the answer, whose body is dropped.
async fn post(client: &mut TcpStream) -> String {
    let head = "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n";
    let body = format!("{:50}", "{}");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        client.read_buf(&mut answer).await.unwrap();
    }
    String::from_utf8_lossy(&answer[9..12]).into_owned()
}

#[tokio::test]
async fn new_settings_hold_for_the_next_request_of_a_connection_that_rests() {
    beside_router(|router| async move {
        let mut client = TcpStream::connect(router.address).await.unwrap();
        assert_eq!(post(&mut client).await, "503");
        router
            .orders
            .send_modify(|orders| orders.settings = settings(10));
        yield_now().await;
        assert_eq!(post(&mut client).await, "413");
    })
    .await;
}

#[tokio::test]
async fn a_router_that_stops_at_once_says_nothing_to_who_has_asked_nothing() {
    beside_router(|router| async move {
        let mut clients = Vec::new();
        for requests in 0..2 {
            let mut client = TcpStream::connect(router.address).await.unwrap();
            for _ in 0..requests {
                assert_eq!(post(&mut client).await, "503");
            }
            clients.push(client);
        }
        router
            .orders
            .send_modify(|orders| orders.phase = Phase::Stopped);
        for mut client in clients {
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&rest), "");
        }
    })
    .await;
}
