use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use infini_router::proxy::gateway::{Settings, Shared};
use infini_router::proxy::worker::{Orders, Phase, serve_thread};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::sleep;

use crate::handlers::Router;
use crate::rig::quick;

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n";

fn connect(listener: &TcpListener) -> TcpStream {
    TcpStream::connect(listener.local_addr().unwrap()).unwrap()
}

fn ask(listener: &TcpListener) -> TcpStream {
    let mut client = connect(listener);
    client.write_all(REQUEST).unwrap();
    client
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_the_queue_of_a_port_that_closes_is_served() {
    let context = Router::new(quick()).context;
    let (store, load, room) = (&context.store, &context.load, &context.room);
    let (store, load, room) = (Arc::clone(store), Arc::clone(load), Arc::clone(room));
    let shared = Arc::new(Shared::new(store, load, room, context));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let own = listener.try_clone().unwrap();
    let settings = Arc::new(Settings::new(Arc::new(quick())));
    let phase = Phase::Serving;
    let (orders, receiver) = watch::channel(Orders { phase, settings });
    let thread = LocalSet::new();
    let asked = thread.run_until(async move {
        let serving = spawn_local(serve_thread(shared, vec![own], receiver));
        yield_now().await;
        // Nothing is awaited up to the order: nobody accepts meanwhile.
        let mut clients: Vec<TcpStream> = (0..20).map(|_| ask(&listener)).collect();
        let mut late = connect(&listener);
        drop(listener);
        orders.send_modify(|orders| orders.phase = Phase::Closing);
        sleep(Duration::from_millis(100)).await;
        late.write_all(REQUEST).unwrap();
        clients.push(late);
        serving.await.unwrap();
        clients
    });
    let clients = asked.await;
    drop(thread);
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
