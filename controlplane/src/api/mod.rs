//! The HTTP JSON API of operators.

pub mod types;
