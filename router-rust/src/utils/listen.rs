//! The sockets that clients connect to.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};

use socket2::{Domain, Socket, Type};

use crate::config::RouterConfig;
use crate::utils::handover::HandoverError;

const BACKLOG: i32 = 4096;
/// Bytes for a client that the kernel holds, beside those on their way. Of megabytes it would not
/// show that a slow reader goes on reading.
const MAX_UNSENT: u32 = 64 * 1024;

/// Listeners on every address of the host, one group for each thread; and the first address.
///
/// # Errors
///
/// The host is unknown, or an address is taken.
pub fn bind_all(config: &RouterConfig) -> io::Result<(Vec<Vec<TcpListener>>, SocketAddr)> {
    let mut addresses: Vec<SocketAddr> = (config.host.as_str(), config.router_port)
        .to_socket_addrs()?
        .collect();
    addresses.dedup();
    let groups = config.threads.max(1);
    let mut listeners: Vec<Vec<TcpListener>> = (0..groups).map(|_| Vec::new()).collect();
    for address in &mut addresses {
        // Shared ports let a second router take part of the requests unnoticed: the port must be
        // free for one listener that does not share.
        let alone = bind(*address, false)?;
        address.set_port(alone.local_addr()?.port());
        drop(alone);
        for group in &mut listeners {
            group.push(bind(*address, groups > 1)?);
        }
    }
    let first = addresses.first().copied();
    let first = first.ok_or_else(|| io::Error::other("the host has no address"))?;
    Ok((listeners, first))
}

/// Listeners of another router, one group for each thread; and the first address.
///
/// # Errors
///
/// They listen elsewhere than the configuration says.
pub fn share_out(
    config: &RouterConfig,
    listeners: &[TcpListener],
) -> Result<(Vec<Vec<TcpListener>>, SocketAddr), HandoverError> {
    let found = listeners.iter().map(TcpListener::local_addr);
    let found: Vec<SocketAddr> = found
        .collect::<io::Result<_>>()
        .map_err(|error| fault(&error))?;
    let wanted = (config.host.as_str(), config.router_port).to_socket_addrs();
    let wanted: BTreeSet<SocketAddr> = wanted.map_err(|error| fault(&error))?.collect();
    let any_port = config.router_port == 0;
    let plain = |a: &SocketAddr| SocketAddr::new(a.ip(), if any_port { 0 } else { a.port() });
    let first = found
        .first()
        .copied()
        .unwrap_or_else(|| plain(&([0; 4], 0).into()));
    if found.iter().map(plain).collect::<BTreeSet<_>>() != wanted {
        return Err(HandoverError(format!(
            "the router that runs listens on {first}, this one is to listen on {}:{}: stop it first",
            config.host, config.router_port
        )));
    }
    let groups = config.threads.max(1);
    let mut shared: Vec<Vec<TcpListener>> = (0..groups).map(|_| Vec::new()).collect();
    // Each thread needs one, and each listener a thread.
    for index in 0..groups.max(listeners.len()) {
        let copy = listeners[index % listeners.len()].try_clone();
        shared[index % groups].push(copy.map_err(|error| fault(&error))?);
    }
    Ok((shared, first))
}

fn fault(error: &io::Error) -> HandoverError {
    HandoverError(plain_reason(error))
}

fn bind(address: SocketAddr, share_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_notsent_lowat(MAX_UNSENT)?; // connections inherit it
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// An error of the system without the number that Rust puts behind it.
pub fn plain_reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
