//! Who is who: the certificate authority, the keys that sign commands, tokens, enrolment.
//!
//! Invariants: the authority's and the command keys stay in `DIR/control`, readable by the owner
//! alone; secrets of tokens are stored as SHA-256 only; an agent id is certified for one key at a
//! time, and another key gets it never, whatever token it shows.

mod authority;
mod command_keys;
mod csr;
mod enrol;
mod tokens;

pub use authority::{AGENT_LIFE_MS, Authority, AuthorityError, Issued, SERVER_NAME, names_of};
pub use command_keys::{CommandKeys, CommandKeysError};
pub use csr::{CertifiedKey, CsrError};
pub use enrol::{Enroller, agent_id_for};
pub use tokens::{AdminTokens, JOIN_TTL_MS, JOIN_TTL_MS_MAX, JoinTokens, TokenRefusal, Withdrawn};
