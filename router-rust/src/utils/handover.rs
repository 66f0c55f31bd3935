//! How a router gives its listening sockets to its successor, so that no connection is lost.
//!
//! For a moment both hold the same sockets: what waits in their queues is accepted by one or the
//! other. (`SO_REUSEPORT` would give each its own, and what waits in one of them is reset when it is
//! closed.)
//!
//! At a Unix socket, the door, the old one says `1`, `L` with some listening sockets, again until all
//! are said, and `.`. The new one says `T` (taken) when it serves, and the old one `R` (released) when
//! it accepts no more. Both must be processes of one user: whoever holds the sockets can read what
//! clients send.

use std::fs::{File, Permissions, set_permissions};
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::utils::files::reason_of;

pub const VERSION: u8 = b'1';
pub const LISTENER: u8 = b'L';
pub const END: u8 = b'.';
pub const TAKEN: u8 = b'T';
pub const RELEASED: u8 = b'R';
/// For each word of the old router.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const BUSY: &str = "no answer in 5 s, another router may be taking over";
/// Time in which a successor gets ready.
pub const SUCCESSOR_LIMIT: Duration = Duration::from_mins(2);
pub const MAX_LISTENERS: usize = 4096;
/// Listeners; the kernel takes 253, and a few hundred words.
pub const AT_A_TIME: usize = 64;
/// Pause after a successor could not be accepted, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening sockets can't be taken over, or not be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandoverError(pub String);

/// The router that has taken over.
#[derive(Debug)]
pub struct Successor {
    peer: UnixStream,
}

impl Successor {
    /// Say that this router accepts no more.
    pub fn release(self) {
        // One that is gone does not need to know.
        let _ = self.peer.try_write(&[RELEASED]);
    }
}

/// Where a successor asks for the listening sockets.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    socket: UnixListener,
}

impl Door {
    /// Open it. Needs a runtime.
    ///
    /// # Errors
    ///
    /// Another router has its door there, or the folder can't be written to.
    pub fn open(path: &Path) -> Result<Self, HandoverError> {
        remove_leftover(path)?;
        let opened = listen_at(path).map_err(|error| {
            HandoverError(format!(
                "can't offer the port at {}: {}; choose another --handover, or none",
                path.display(),
                reason_of(&error)
            ))
        });
        Ok(Self {
            path: path.to_owned(),
            socket: opened?,
        })
    }

    /// Wait for a successor that takes these sockets over and serves.
    pub async fn offer(&self, listeners: &[TcpListener]) -> Successor {
        loop {
            let Ok((mut peer, _)) = self.socket.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let taken = timeout(SUCCESSOR_LIMIT, hand_over(&mut peer, listeners)).await;
            if matches!(taken, Ok(Ok(TAKEN))) {
                return Successor { peer };
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Nobody can come through a door that is not there any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let (_folder, address) = short(path)?;
    socket.bind(&SockAddr::unix(address)?)?;
    set_permissions(path, Permissions::from_mode(0o600))?; // before anybody can connect
    socket.listen(1)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// Send everything; returns the successor's word.
async fn hand_over(peer: &mut UnixStream, listeners: &[TcpListener]) -> io::Result<u8> {
    let user = user_of(&*peer)?;
    if user != geteuid().as_raw() {
        warn!("the port is not given to a process of another user uid={user}");
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    peer.writable().await?;
    peer.try_write(&[VERSION])?;
    for some in listeners.chunks(AT_A_TIME) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_A_TIME))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = some.iter().map(AsFd::as_fd).collect();
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let word = [IoSlice::new(&[LISTENER])];
        sendmsg(&*peer, &word, &mut control, SendFlags::NOSIGNAL)?;
    }
    peer.try_write(&[END])?;
    peer.read_u8().await
}

/// What the old router gives: its listening sockets. Until `confirm` it serves on as before.
#[derive(Debug)]
pub struct Inheritance {
    pub listeners: Vec<TcpListener>,
    peer: BlockingStream,
}

impl Inheritance {
    /// Ask for them. Blocks for a moment.
    ///
    /// # Errors
    ///
    /// Nobody gives any.
    pub fn ask(path: &Path) -> Result<Self, HandoverError> {
        Self::receive(path).map_err(|error| {
            HandoverError(format!(
                "no router gives its port at {} ({}); is one running that was started with the same \
                 --handover? If not, stop it first, and start this one without --take-over",
                path.display(),
                if is_late(&error) {
                    BUSY.to_owned()
                } else {
                    reason_of(&error)
                }
            ))
        })
    }

    fn receive(path: &Path) -> io::Result<Self> {
        let (_folder, address) = short(path)?;
        let mut peer = connect(address)?;
        peer.set_nonblocking(false)?;
        peer.set_read_timeout(Some(ANSWER_LIMIT))?;
        peer.set_write_timeout(Some(ANSWER_LIMIT))?;
        let (user, own) = (user_of(&peer)?, geteuid().as_raw());
        if user != own {
            let reason = format!("it runs as user {user}, this one as {own}");
            return Err(io::Error::other(reason));
        }
        let mut word = [0];
        if peer.read(&mut word)? != 1 || word[0] != VERSION {
            let reason = "it is no router, or one of another version";
            return Err(io::Error::other(reason));
        }
        let mut listeners = Vec::new();
        while listeners.len() <= MAX_LISTENERS {
            let (word, some) = receive_some(&peer)?;
            let empty = some.is_empty();
            listeners.extend(some);
            match word {
                LISTENER if !empty => {}
                END if !listeners.is_empty() => return Ok(Self { listeners, peer }),
                _ => break,
            }
        }
        Err(io::Error::other("it gave no sockets"))
    }

    /// Whether the old router has ended, or has been told to.
    pub fn is_gone(&self) -> bool {
        let mut word = [0];
        match recv(&self.peer, &mut word, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((count, _)) => count == 0,
            Err(error) => !is_late(&error.into()),
        }
    }

    /// Say that this router serves; true when the old one accepts no more. Blocks for a moment.
    pub fn confirm(mut self) -> bool {
        let mut word = [0];
        let said = self.peer.write_all(&[TAKEN]);
        match said.and_then(|()| self.peer.read(&mut word)) {
            Ok(count) => count == 0 || word[0] == RELEASED,
            Err(error) => !is_late(&error), // else it has ended
        }
    }
}

/// One word, and the sockets that came with it.
fn receive_some(peer: &BlockingStream) -> io::Result<(u8, Vec<TcpListener>)> {
    let mut word = [0];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_A_TIME))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut word)];
    recvmsg(peer, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((word[0], fds.flatten().map(TcpListener::from).collect()))
}

/// Remove the door of a router that was killed; one that answers is left alone.
fn remove_leftover(path: &Path) -> Result<(), HandoverError> {
    if !path
        .symlink_metadata()
        .is_ok_and(|found| found.file_type().is_socket())
    {
        return Ok(());
    }
    let answer = short(path).and_then(|(_folder, address)| connect(address));
    match answer {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // If it can't be removed, binding says why.
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        _ => Err(HandoverError(format!(
            "another router gives its port at {}; choose another --handover, or --take-over",
            path.display()
        ))),
    }
}

/// A connection that does not wait for its place in the queue; it blocks no call.
fn connect(address: PathBuf) -> io::Result<BlockingStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(address)?)?;
    Ok(OwnedFd::from(socket).into())
}

fn is_late(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::WouldBlock || kind == io::ErrorKind::TimedOut
}

/// The user id of the process at the other end when it connected, or began to listen.
fn user_of(peer: impl AsFd) -> io::Result<u32> {
    Ok(socket_peercred(peer)?.uid.as_raw())
}

/// The path of a socket in few bytes, since the kernel takes 107 at most. It holds as long as the
/// folder that comes with it is open.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(parent.unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default();
    let address = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((folder, address))
}
