//! The part without I/O: what a file is, what is known of it, and how it moves between peers.
//!
//! Modules from the bottom up: [`geometry`] (pieces and blocks of a size), [`merkle`] (the tree of
//! BEP 52), [`manifest`] (what identifies a file), [`metainfo`] (the same as other clients read
//! it), [`tree`] (a directory as one file), [`bitfield`] and [`piece_map`] (what is here),
//! [`peer_wire`] (messages), [`link`] (the protocol with one peer), [`hashes`] and [`download`]
//! (what to fetch next and whether it is true), [`upload`] (what one peer asked for), and at the
//! top [`leecher`] and [`seeder`], which join one link with a download or an upload, and [`swarm`],
//! which owns many links over one [`download::Download`] and follows a [`plan`]. Nothing below these
//! knows how many links there are.
//!
//! Beside them stand [`planner`] (which gear, and how long it takes) and [`coordinator`] (who sends
//! what to whom), which control runs; they and a swarm share only [`plan`] and [`place`].
//! Whom a member may meet stands in [`membership`] (signed) and [`hints`] (not). [`folder`] is what
//! an order says about where its file goes.

pub mod bitfield;
pub mod coordinator;
pub mod download;
mod failure;
pub mod folder;
pub mod geometry;
mod handshake;
pub mod hashes;
pub mod hints;
pub mod leecher;
pub mod link;
mod link_error;
pub mod manifest;
pub mod membership;
pub mod merkle;
pub mod metainfo;
pub mod name;
pub mod pace;
pub mod peer_wire;
pub mod piece_map;
pub mod piece_tree;
pub mod place;
pub mod plan;
pub mod planner;
pub mod seeder;
pub mod swarm;
pub mod tree;
pub mod upload;
pub mod v1;

#[cfg(test)]
mod swarm_tests;
#[cfg(test)]
mod transfer_tests;
