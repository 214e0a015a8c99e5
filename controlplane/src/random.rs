//! Random bytes for ids and secrets, from the operating system.

use ring::rand::{SecureRandom, SystemRandom};

/// `N` random bytes. Fails only where the kernel has no randomness, where nothing may go on.
pub fn bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the kernel gave no random bytes"))?;
    Ok(bytes)
}
