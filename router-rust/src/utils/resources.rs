//! What the system lets this process have: descriptors and memory.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SHORTAGES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];

/// Whether this process, or its machine, lacks what a connection needs: no fault of the peer.
pub fn is_shortage(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| SHORTAGES.contains(&errno))
}

/// Take as many descriptors as the administrator allows.
///
/// The soft limit is low (1024, mostly) for programs that use `select`, and lower than the clients
/// that may connect.
pub fn raise_descriptor_limit() {
    let limits = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limits.maximum,
        ..limits
    };
    // Where it is forbidden the router serves with what it has.
    let _ = setrlimit(Resource::Nofile, all);
}
