"""Tests of reading columns from TSV and CSV files."""

import pytest

from bert_pruning.data.tables import find_file
from bert_pruning.data.tables import read_table
from bert_pruning.errors import UserError


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


class TestTsv:
    def read(self, tmp_path, text, columns=("a", "b"), **options):
        path = write(tmp_path / "table.tsv", text)
        return read_table(path, columns, **options)

    def test_finds_columns_by_name(self, tmp_path):
        table = self.read(tmp_path, "b\tx\ta\n1\t2\t3\n4\t5\t6\n")
        assert table.columns == {"a": ["3", "6"], "b": ["1", "4"]}
        assert table.lines == [2, 3]

    def test_byte_order_mark_is_not_part_of_the_first_column(self, tmp_path):
        table = self.read(tmp_path, b"\xef\xbb\xbfa\tb\n1\t2\n")
        assert table.columns == {"a": ["1"], "b": ["2"]}

    def test_cr_lf_and_no_final_newline(self, tmp_path):
        table = self.read(tmp_path, "a\tb\r\n1\t2\r\n3\t4")
        assert table.columns == {"a": ["1", "3"], "b": ["2", "4"]}

    def test_quotes_are_ordinary_characters(self, tmp_path):
        table = self.read(tmp_path, 'a\tb\n"1\t2"\n"3"\t""4""\n')
        assert table.columns == {"a": ['"1', '"3"'], "b": ['2"', '""4""']}

    @pytest.mark.parametrize("char", "\u2028\u2029\x85\x0b\x0c\x1c\x1e\r")
    def test_only_a_newline_ends_a_line(self, tmp_path, char):
        table = self.read(tmp_path, f"a\tb\n1{char}1\t2\n")
        assert table.columns == {"a": [f"1{char}1"], "b": ["2"]}

    def test_fields_keep_their_spaces(self, tmp_path):
        table = self.read(tmp_path, "a\tb\n 1 \t\n")
        assert table.columns == {"a": [" 1 "], "b": [""]}

    def test_header_may_be_given(self, tmp_path):
        table = self.read(tmp_path, "1\t2\n", header=("b", "a"))
        assert table.columns == {"a": ["2"], "b": ["1"]}
        assert table.lines == [1]

    def test_optional_column(self, tmp_path):
        table = self.read(tmp_path, "a\n1\n", ["a"], optional=["b"])
        assert table.columns == {"a": ["1"]}
        table = self.read(tmp_path, "a\tb\n1\t2\n", ["a"], optional=["b"])
        assert table.columns == {"a": ["1"], "b": ["2"]}

    @pytest.mark.parametrize("row", ["1", "1\t2\t3", ""])
    def test_wrong_number_of_fields_names_file_and_line(self, tmp_path, row):
        with pytest.raises(UserError, match=r"table\.tsv:3: expected 2 fields"):
            self.read(tmp_path, f"a\tb\n1\t2\n{row}\n1\t2\n")

    def test_malformed_rows_are_skipped_and_counted(self, tmp_path):
        table = self.read(
            tmp_path, "a\tb\n1\n\n1\t2\n1\t2\t3\n", skip_malformed=True
        )
        assert table.columns == {"a": ["1"], "b": ["2"]}
        assert table.lines == [4]
        assert table.malformed == [2, 3, 5]

    def test_blank_lines_at_the_end_are_no_rows(self, tmp_path):
        table = self.read(tmp_path, "a\tb\n1\t2\n\n\r\n")
        assert table.lines == [2]
        assert table.malformed == []

    def test_missing_column_names_those_there_are(self, tmp_path):
        with pytest.raises(UserError, match="no column 'b'.*'a', 'c'"):
            self.read(tmp_path, "a\tc\n1\t2\n")

    def test_column_that_occurs_twice(self, tmp_path):
        with pytest.raises(UserError, match="'b' occurs 2 times"):
            self.read(tmp_path, "a\tb\tb\n1\t2\t3\n")

    def test_bytes_that_are_not_utf_8(self, tmp_path):
        with pytest.raises(UserError, match=r"table\.tsv:2: not UTF-8"):
            self.read(tmp_path, "a\tb\ncafé\t2\n".encode("latin-1"))

    def test_file_that_cannot_be_read(self, tmp_path):
        (tmp_path / "table.tsv").mkdir()
        with pytest.raises(UserError, match=r"Cannot read .*table\.tsv: "):
            read_table(str(tmp_path / "table.tsv"), ["a"])

    def test_empty_file(self, tmp_path):
        with pytest.raises(UserError, match="is empty"):
            self.read(tmp_path, "")

    def test_header_without_rows(self, tmp_path):
        with pytest.raises(UserError, match="no rows"):
            self.read(tmp_path, "a\tb\n\n")


class TestCsv:
    def read(self, tmp_path, text):
        return read_table(write(tmp_path / "table.csv", text), ["a", "b"])

    def test_quoted_fields(self, tmp_path):
        table = self.read(
            tmp_path, '\ufeffa,b\r\n"x, y","say ""no"""\r\n"1\n2",3\r\n\r\n4,5'
        )
        assert table.columns == {
            "a": ["x, y", "1\n2", "4"],
            "b": ['say "no"', "3", "5"],
        }
        assert table.lines == [2, 3, 6]

    def test_fields_may_be_long(self, tmp_path):
        text = "word " * 50_000
        table = self.read(tmp_path, f"a,b\n{text},1\n")
        assert table.columns["a"] == [text]

    def test_wrong_number_of_fields_names_the_first_line_of_the_row(
        self, tmp_path
    ):
        with pytest.raises(UserError, match=r"table\.csv:4: expected 2"):
            self.read(tmp_path, 'a,b\n"1\n1",2\n"3\n3"\n')

    @pytest.mark.parametrize("row", ['"1"2,3', '1,"2'])
    def test_broken_quoting(self, tmp_path, row):
        with pytest.raises(UserError, match=r"table\.csv:2: "):
            self.read(tmp_path, f"a,b\n{row}\n")


class TestFindFile:
    def test_in_the_folder_of_the_task_or_above(self, tmp_path):
        above = write(tmp_path / "dev.tsv", "a\n1\n")
        assert find_file(str(tmp_path), "RTE", "dev.tsv") == above
        (tmp_path / "RTE").mkdir()
        inside = write(tmp_path / "RTE" / "dev.tsv", "a\n1\n")
        assert find_file(str(tmp_path), "RTE", "dev.tsv") == inside

    def test_with_either_extension(self, tmp_path):
        path = write(tmp_path / "dev.csv", "a\n1\n")
        assert find_file(str(tmp_path), "", "dev") == path
        write(tmp_path / "dev.tsv", "a\n1\n")
        with pytest.raises(UserError, match="Which one"):
            find_file(str(tmp_path), "", "dev")

    def test_absolute_path(self, tmp_path):
        path = write(tmp_path / "dev.csv", "a\n1\n")
        assert find_file("elsewhere", "", path) == path
        with pytest.raises(UserError, match="There is no file"):
            find_file("elsewhere", "", path + "x")

    def test_missing_folder_suggests_to_fetch(self, tmp_path):
        with pytest.raises(UserError, match="no data folder.*fetch"):
            find_file(str(tmp_path / "glue"), "RTE", "dev.tsv")

    def test_missing_file_tells_where_it_should_be_and_what_is_there(
        self, tmp_path
    ):
        (tmp_path / "RTE").mkdir()
        write(tmp_path / "RTE" / "train.tsv", "")
        with pytest.raises(UserError) as error:
            find_file(str(tmp_path), "RTE", "dev.tsv")
        message = str(error.value)
        assert str(tmp_path / "RTE" / "dev.tsv") in message
        assert "RTE holds train.tsv." in message
        assert "fetch --what=glue" in message

    def test_empty_folder(self, tmp_path):
        with pytest.raises(UserError, match="is empty"):
            find_file(str(tmp_path), "RTE", "dev.tsv")
