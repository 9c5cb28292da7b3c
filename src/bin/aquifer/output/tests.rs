use super::{json_line, rounded, table};

#[test]
fn keys_stay_in_order_and_text_is_escaped() {
    let fields = [("b", "a \"quoted\" name".into()), ("a", rounded(Some(1.049_96), 4))];
    assert_eq!(json_line(&fields), r#"{"b":"a \"quoted\" name","a":1.05}"#);
    assert_eq!(json_line(&[("n", rounded(None, 1))]), r#"{"n":null}"#);
}

#[test]
fn columns_are_aligned() {
    let rows = [["name", "n", "calls"], ["a", "1000", "-"]];
    let rows = rows.map(|row| row.map(str::to_owned).to_vec());
    assert_eq!(table(&rows), "name     n  calls\na     1000  -");
}
