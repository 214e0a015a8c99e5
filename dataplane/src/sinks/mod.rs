//! Sinks: how routed records become files, and how files and positions survive a crash.
//!
//! Sans-IO parts: [`template`] (where), [`format`](mod@format) (how), [`block`] (what is to be
//! written), [`checkpoint`] (what is stored). The disk is behind the seam of [`disk`], with two
//! drivers: [`dma`] (glommio) and [`plain`]. [`recover`] runs at start, before any driver.

pub mod block;
pub mod checkpoint;
pub mod disk;
pub mod dma;
pub mod format;
mod place;
pub mod plain;
pub mod recover;
pub mod template;
