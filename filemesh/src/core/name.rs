//! The rule that a file's final name must keep before anything on disk is named after it.

/// Longest name of a directory entry on the file systems in use.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is there.
    #[error("the file name is empty")]
    Empty,
    /// It is `.` or `..`.
    #[error("'.' and '..' are directories, not file names")]
    Dots,
    /// It contains a slash.
    #[error("a file name must not contain '/'")]
    Slash,
    /// It contains a NUL byte.
    #[error("a file name must not contain a NUL byte")]
    Nul,
    /// It is longer than [`NAME_BYTES_MAX`].
    #[error("a file name is at most {NAME_BYTES_MAX} bytes, this one has {0}")]
    Long(usize),
}

/// Accepts `name` as one directory entry: not empty, no `/`, no NUL, neither `.` nor `..`, at most
/// 255 bytes. Newlines and bytes that are not UTF-8 are legal on disk and stay legal here.
pub fn check_file_name(name: &[u8]) -> Result<(), NameError> {
    match name {
        [] => Err(NameError::Empty),
        b"." | b".." => Err(NameError::Dots),
        _ if name.contains(&b'/') => Err(NameError::Slash),
        _ if name.contains(&0) => Err(NameError::Nul),
        _ if name.len() > NAME_BYTES_MAX => Err(NameError::Long(name.len())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = [b'a'; 256];
        for (name, error) in [
            (&b""[..], NameError::Empty),
            (b".", NameError::Dots),
            (b"..", NameError::Dots),
            (b"/etc/passwd", NameError::Slash),
            (b"../x", NameError::Slash),
            (b"a\0b", NameError::Nul),
            (&long, NameError::Long(256)),
        ] {
            assert_eq!(check_file_name(name), Err(error));
        }
        for name in [&b"a"[..], b"...", b".hidden", b"a\nb", b"\xff\xfe", &long[..255]] {
            assert_eq!(check_file_name(name), Ok(()));
        }
    }
}
