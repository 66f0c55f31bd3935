use std::io;

use infini_router::utils::resources::{is_shortage, raise_descriptor_limit};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn what_the_router_lacks_is_told_from_what_its_peers_do() {
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
        assert!(is_shortage(&errno.into()), "{errno}");
    }
    for errno in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::TIMEDOUT] {
        assert!(!is_shortage(&errno.into()), "{errno}");
    }
    assert!(!is_shortage(&io::ErrorKind::TimedOut.into()));
}

#[test]
fn descriptors_are_taken_as_far_as_that_is_allowed() {
    let limits = getrlimit(Resource::Nofile);
    let current = limits.maximum.map(|all| all - 1); // enough for the tests beside this one
    setrlimit(Resource::Nofile, Rlimit { current, ..limits }).unwrap();
    raise_descriptor_limit();
    assert_eq!(getrlimit(Resource::Nofile).current, limits.maximum);
}
