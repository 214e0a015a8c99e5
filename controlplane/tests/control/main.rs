//! The control process as a whole, one file per subject. See [`harness`] for what is real.

mod enrolment;
mod gears;
mod harness;
mod hostile;
mod operators;
mod progress;
mod restart;
mod revoking;
mod rollout;
mod running_tasks;
mod strangers;
mod transfers;
