//! A number with the noun that it counts.

/// `1 pod`, `2 pods`.
pub(crate) fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_numbers_but_one_are_in_the_plural() {
        for (number, expected) in [(0, "0 pods"), (1, "1 pod"), (2, "2 pods")] {
            assert_eq!(counted(number, "pod"), expected);
        }
    }
}
