# The tests' guest: a boot sector that keeps dirtying memory and notices when a page of it is torn.
#
#   0x8000  "MFDG"
#   0x8004  u32 n: rounds done
#   0x10000..0x90000  128 pages; each holds n in its first and in its last four bytes
#
# A round checks that every page holds n at both ends, and writes n + 1 to both. Every 4096 rounds the serial port gets
# "C" and n in hex, and a line feed; a page that does not hold what it must is "T" and the n expected, then silence.
#
# Built by: as --32 -o boot.o boot.s && ld -m elf_i386 --oformat binary -Ttext 0x7c00 -o boot.bin boot.o
        .code16
        .globl _start
_start:
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movl    $0x4744464d, 0x8000
        xorl    %eax, %eax
        movl    %eax, 0x8004
        movw    $0x1000, %dx
clear:
        movw    %dx, %es
        movl    %eax, %es:0
        movl    %eax, %es:4092
        addw    $0x100, %dx
        cmpw    $0x9000, %dx
        jb      clear
round:
        movl    0x8004, %eax
        movl    %eax, %ebx
        incl    %ebx
        movw    $0x1000, %dx
page:
        movw    %dx, %es
        cmpl    %eax, %es:0
        jne     torn
        cmpl    %eax, %es:4092
        jne     torn
        movl    %ebx, %es:0
        movl    %ebx, %es:4092
        addw    $0x100, %dx
        cmpw    $0x9000, %dx
        jb      page
        movl    %ebx, 0x8004
        testw   $0x0fff, %bx
        jnz     round
        movb    $'C', %al
        call    report
        jmp     round
torn:
        movl    %eax, %ebx
        movb    $'T', %al
        call    report
halt:
        hlt
        jmp     halt

# Sends %al, then %ebx in hex, then a line feed.
report:
        movw    $0x3f8, %dx
        outb    %al, %dx
        movw    $8, %cx
digit:
        roll    $4, %ebx
        movb    %bl, %al
        andb    $0x0f, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     send
        addb    $('a' - '9' - 1), %al
send:
        outb    %al, %dx
        loop    digit
        movb    $'\n', %al
        outb    %al, %dx
        ret

        .org    510
        .word   0xaa55
