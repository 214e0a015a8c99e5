//! Skein's file mesh: manifests, peer wire, transfer state machines and the file engine.
//!
//! Two layers. [`core`] does no I/O and reads no clock: bytes, events and time come in, actions go
//! out, so that agents, the server and a simulator run the same code. [`engine`] is the only part
//! that touches files. Sockets, TLS and threads belong to the callers.
//!
//! The picture of the direct gear, one seed and one target:
//!
//! ```text
//!   engine::SeedFile ── Pull::Data ──► core::Seeder ══ peer wire ══ core::Leecher ── Write ──► engine::PartialFile
//!   engine::LeafFile ── Pull::Leaves ─┘                              │  └─ PeerLink (one peer)
//!                                                                    └─ Download (piece map, hashes, assignment)
//! ```
//!
//! The invariant everything serves: no byte is written, counted or relayed before its 16 KiB block
//! was proved against the merkle root that control signed.

pub mod core;
pub mod engine;
