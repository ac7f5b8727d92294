"""Elements: texts are escaped wherever they stand, elements are not escaped again."""

from __future__ import annotations

from foreword.compare.markup import element, joined


def test_texts_and_attributes_are_escaped() -> None:
    found = element("p", "a <b> & 'c'", title='"x" <y>')
    assert found == '<p title="&quot;x&quot; &lt;y&gt;">a &lt;b&gt; &amp; &#x27;c&#x27;</p>'


def test_elements_are_taken_as_they_are() -> None:
    assert element("p", element("b", "<"), ">") == "<p><b>&lt;</b>&gt;</p>"
    assert joined("<", element("b")) == "&lt;<b></b>"
    assert joined() == ""


def test_attributes_have_their_names_and_hundredths() -> None:
    found = element("text", class_="tick", text_anchor="end", x=1.006, y=-2.0, fill=None)
    assert found == '<text class="tick" text-anchor="end" x="1.01" y="-2"></text>'
    assert element("meta", name="viewport", content="") == '<meta name="viewport" content="">'
