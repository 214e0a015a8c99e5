//! What tasks and transfers have in common. Both are jobs: a record and the hosts it is for.
//!
//! ```text
//! request ─► shelf (stored before it is answered) ─► worker ─► orders ─► agents
//!                                                       ▲                  │
//!                          ends, stored before seen ────┴──── reports ◄────┘
//! ```
//! [`shelf`] says how a job lies in the store, [`worker`] how groups of events are taken,
//! [`delivery`] when an order that nobody answered is sent again, [`history`] which ended jobs are
//! forgotten. What a report means is the business of each kind.

pub mod delivery;
pub mod history;
pub mod shelf;
pub mod worker;
