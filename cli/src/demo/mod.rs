//! placeholder
#[derive(clap::Args, Debug)]
/// Flags of `demo`.
pub struct DemoArgs {}
/// x
pub fn run(_: &DemoArgs) -> crate::commands::Outcome {
    Ok(0)
}
