//! The command line: arguments -> configuration, logging, serve, exit code.

#![forbid(unsafe_code)]

fn main() {}
