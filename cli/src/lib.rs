//! Skein: the server and the operator's command line in one binary.
//!
//! This crate only composes: it parses arguments, reads the server's configuration, supervises the
//! server's two processes and talks to the operators' API. What the server does lives in
//! `skein-controlplane` and `skein-dataplane`.
//!
//! It is a library so that the demo, the story tests and the measurements drive the same real
//! processes by the same code ([`local`]) and count outcomes in the same way ([`recount`]).

pub mod args;
pub mod client;
pub mod commands;
pub mod connection;
pub mod demo;
pub mod error;
pub mod guard;
pub mod local;
pub mod progress;
pub mod quantity;
pub mod recount;
pub mod server;
pub mod show;
pub mod trust;
pub mod watch;
