//! The agent's connections to its servers: how they are dialled ([`Dialer`]), when they are tried
//! again ([`Redial`]), and the signal session that carries commands and reports.

pub mod dialer;
pub mod redial;
pub mod servers;

pub use dialer::{Dialer, LinkError, LinkStream};
pub use redial::Redial;
