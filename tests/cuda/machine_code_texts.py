"""Short texts of machine code for tests, as nvdisasm would print them."""

from tests.cuda.machine_code import parse

HEADER = """
//--------------------- .text.{name}             --------------------------
	.section	.text.{name},"ax",@progbits
	.align	128
        .global         {name}
        .type           {name},@function
{name}:
.text.{name}:
"""


def text_of(name, *lines):
    """As nvdisasm prints it. A line that ends with a colon is a label."""
    out, address = [HEADER.format(name=name)], 0
    for line in lines:
        if line.endswith(":"):
            out.append(line)
        else:
            out.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(out)


def code_of(*lines):
    return parse(text_of("kernel", *lines))["kernel"]
