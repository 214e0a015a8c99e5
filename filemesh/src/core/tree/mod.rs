//! A directory as one stream of bytes, so that one merkle root proves all of it and every gear,
//! piece map and proof works as for a file.
//!
//! ```text
//!   ┌ listing ────────────┐ ┌ contents, in the listing's order ────────────────────────┐
//!   header, owners, entries·a/1 a/2 b c │·· d (1 MiB or more, on a block border) │ e f ...
//! ```
//!
//! The [`listing`] says what there is, [`codec`] what its bytes mean, and the [`layout`] follows
//! from it alone: which bytes of the stream are which bytes of which file. Holes are not in the
//! stream. A listing is hostile until it was decoded: [`listing::ListingBuilder`] is the only way
//! to make one and keeps every rule, for the encoder and for the decoder.

pub mod codec;
pub mod layout;
pub mod listing;

#[cfg(test)]
mod tests;
