//! The agent's connections to its servers: how they are dialled ([`Dialer`]), when they are tried
//! again ([`Redial`]), and the signal session that carries commands and reports.

pub mod dialer;
pub mod outbox;
pub mod redial;
pub mod renewal;
pub mod servers;
pub mod session;

pub use dialer::{Dialer, LinkError, LinkStream};
pub(crate) use dialer::{tls_provider, tune};
pub use outbox::{LinkEvent, Outbox, Priority};
pub use redial::Redial;
pub use session::SignalLink;
